# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# The table of relative errors of momentum_delta_rule, a part a core.
accuracy() {
  echo
  local parts i row line text pids=()
  parts=$(nproc)
  for ((i = 0; i < parts; ++i)); do
    OMP_NUM_THREADS=1 timeout 300 "$build/accuracy_momentum_delta_rule_cuda" --part "$i/$parts" \
      >"$logs/accuracy.$i" 2>"$logs/accuracy.$i.error" &
    pids+=($!)
  done
  wait "${pids[@]}"
  echo "Relative errors in the 2-norm against float64, bfloat16 inputs and outputs (whose own"
  echo "rounding is 0.17%). bench/accuracy_momentum_delta_rule_cuda.cpp says how gates are drawn."
  echo "The published kernel, o at T 512 and random keys: 0.5% at -0.1, 3.3% at -0.3, 169% at -0.5,"
  echo "128% at -1, NaN at -2. Predicted: before the kernels were written, with a float64 program that rounds"
  echo "the operands of its products; o without its own rounding, worst of d_q, d_k, d_v and of the gates."
  echo
  head -2 "$logs/accuracy.0"
  for ((row = 0; ; ++row)); do # row r is line r / parts of part r % parts
    line=$((row / parts + 1 + (row % parts == 0 ? 2 : 0)))
    text=$(sed -n "${line}p" "$logs/accuracy.$((row % parts))")
    [[ -n $text ]] || break
    echo "$text"
  done
  if grep -q . "$logs"/accuracy.*.error; then
    failed=1
    cat "$logs"/accuracy.*.error >&2
  fi
}
table momentum_delta_rule_accuracy "tools/gpu_check.sh $build" accuracy
