# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# momentum_delta_rule against the float64 reference, on the kernels that are chosen and on the
# portable ones.
correctness() {
  echo
  echo "| run | passed | skipped | result |"
  echo "|---|---|---|---|"
  local program=momentum_delta_rule_cuda_test mode log result
  run_tests chosen_kernels $program '*-*PastTwo*' MDN_CUDA_PORTABLE=0
  run_tests portable_kernels $program '*-*PastTwo*' MDN_CUDA_PORTABLE=1
  for mode in 0 1; do # much memory: one after the other
    log=$logs/large.$mode
    if MDN_CUDA_PORTABLE=$mode timeout 120 "$build/$program" --gtest_filter='*PastTwo*' \
      >"$log" 2>&1; then result=ok; else
      result=FAILED
      failed=1
      grep -vE '^\[ ' "$log" | head -20 >&2
    fi
    echo "| past_2^31_elements, portable=$mode | $(grep -c '^\[       OK' "$log") | $(grep -c '^\[  SKIPPED \] [A-Z].* (' "$log") | $result |"
  done
}
table momentum_delta_rule_correctness "tools/gpu_check.sh $build" correctness
