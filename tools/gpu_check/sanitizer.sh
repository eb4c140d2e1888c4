# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# compute-sanitizer over small cases: memcheck, racecheck, initcheck, all at once. BUILD/sanitizer,
# where a carried folder has one, goes before the machine's own.
sanitizer=compute-sanitizer
[[ -x $build/sanitizer/compute-sanitizer ]] && sanitizer=$build/sanitizer/compute-sanitizer

# memcheck and racecheck see the kernels of this project alone: those of libtorch take minutes.
# initcheck must see all that is written, so there every kernel is instrumented. What runs products of
# cuBLAS is left to memcheck: initcheck (of CUDA 13.0) does not see what these write, and racecheck ends
# with an internal error.
check_program() { # tool, name of the run, program, filter, environment...
  local tool=$1 name=$2 program=$3 filter=$4 log=$logs/sanitizer.$1.$2 kernels=(--kernel-name kns=mdn)
  [[ $tool == initcheck ]] && kernels=()
  env OMP_NUM_THREADS=2 "${@:5}" timeout 270 "$sanitizer" --tool "$tool" "${kernels[@]}" \
    --print-limit 1000 --error-exitcode 99 "$build/$program" --gtest_brief=1 --gtest_filter="$filter" >"$log" 2>&1
  echo $? >"$log.status"
}

row_of() { # tool, name of the run
  local log=$logs/sanitizer.$1.$2 status summary passed
  status=$(cat "$log.status")
  summary=$(grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | sed 's/=* *//' | tail -1)
  passed=$(sed -n 's/^\[  PASSED  \] //p' "$log")
  echo "| $1 | $2 | status $status; $summary; passed $passed |"
  if [[ $status != 0 ]]; then
    failed=1
    {
      echo "== $1 $2"
      distinct_reports "$log" | head -40
      grep -vE '^(\[ |=========)' "$log" | head -10
    } >&2
  fi
}

# What was reported and in which kernels and lines, each once, with how often.
distinct_reports() {
  grep -hE 'Error: |Warning: |Uninitialized|Invalid|and (Read|Write) access|    at .*(\.cuh?|\.cu):|Program hit' "$1" |
    sed -E 's/=========//; s/0x[0-9a-f]+/ADDRESS/g; s/\([0-9]+,[0-9]+,[0-9]+\)/(..)/g; s/[0-9]+ hazards/hazards/' |
    sort | uniq -c | sort -rn
}

sanitizer() {
  local small='*CudaCases*/length_17:*CudaCases*/packed:*CudaCases*/odd_channels:*CudaCases*/shared_heads_l2norm:*CudaCases*/tiles_length_65:*CudaCases*/tiles_shared_l2norm:*CudaCases*/tiles_packed:*CudaCases*/tiles_packed_256:*SharedWalks*:*CudaCases*/tiles_without_momentum_128_64:*CudaCases*/tiles_without_momentum_packed:*SegmentCases*/first_cut:*StepUsesSlots*:*Saturate*:*CudaStepCases*/odd_channels'
  local kimi='*16/grouped:*16/seventeen:*16/chunk_and_one'
  local operators='*CudaOps*/small:CudaShortConv.*'
  local products='*LinearCrossEntropy*/small:CudaResidualMlp.*'
  local generation='CudaGenerator.AttentionWithAllOptions'
  local decoders='*/mdn_BFloat16:*/mdn_plain_Float'
  echo "- compute-sanitizer: $("$sanitizer" --version | sed -n 's/^Version //p' | head -1)"
  echo
  echo "Cases of the momentum rule: \`$small\`; of the Kimi delta rule: \`$kimi\`; of the small operators:"
  echo "\`$operators\`; of generation, the attention step among it: \`$generation\`. Under memcheck alone those"
  echo "with products: \`$products\`; of decoders: \`$decoders\`."
  echo
  echo "| tool | kernels | result |"
  echo "|---|---|---|"
  local tool run pids=() poison
  for tool in memcheck racecheck initcheck; do
    poison=()
    [[ $tool == initcheck ]] && poison=(MDN_TEST_NO_POISON=1) # or all that is read were written
    check_program $tool chosen momentum_delta_rule_cuda_test "$small" "${poison[@]}" \
      MDN_CUDA_PORTABLE=0 &
    pids+=($!)
    check_program $tool portable momentum_delta_rule_cuda_test "$small" "${poison[@]}" \
      MDN_CUDA_PORTABLE=1 &
    pids+=($!)
    check_program $tool kimi kimi_delta_rule_cuda_test "$kimi" "${poison[@]}" &
    pids+=($!)
    # libtorch keeps the memory that it frees, and hands it out again as if it were new
    check_program $tool operators cuda_ops_test "$operators-*LinearCrossEntropy*" \
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 &
    pids+=($!)
    # with that cache, without which graphs cannot be captured
    check_program $tool generation cuda_generator_test "$generation" &
    pids+=($!)
  done
  check_program memcheck products cuda_ops_test "$products" PYTORCH_NO_CUDA_MEMORY_CACHING=1 &
  pids+=($!)
  check_program memcheck decoders cuda_decoder_test "$decoders" PYTORCH_NO_CUDA_MEMORY_CACHING=1 &
  pids+=($!)
  wait "${pids[@]}"
  for tool in memcheck racecheck initcheck; do
    for run in chosen portable kimi operators generation; do
      row_of $tool $run
    done
  done
  row_of memcheck products
  row_of memcheck decoders
}
table sanitizer "tools/gpu_check.sh $build" sanitizer
