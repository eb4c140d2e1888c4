# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# What the profiler counts in every kernel of momentum_delta_rule, one call of each.
profile() {
  local counters=$logs/profile.csv metrics
  metrics=gpu__time_duration.sum,dram__bytes.sum,gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed
  metrics+=,l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed
  metrics+=,smsp__issue_active.avg.pct_of_peak_sustained_active
  echo "- profiler: ncu $(ncu --version 2>/dev/null | sed -n 's/^Version //p' || echo none)"
  echo
  echo "Each kernel by itself, caches flushed, clocks left alone: kernels that overlap in a call take longer here"
  echo "than in the table of speed. Shapes are B,T,H,K,V in bfloat16. Waits: what warps that cannot issue wait for,"
  echo "the three largest shares of their cycles."
  echo
  if ! timeout 120 ncu --clock-control none --csv --page raw --section WarpStateStats --metrics "$metrics" \
    -k 'regex:prepare|recurrence|gradients_kernel|finish|segment|step_kernel' \
    "$build/bench_momentum_delta_rule_cuda" once >"$counters" 2>"$counters.error" ||
    ! python3 tools/gpu_check/kernel_counters.py <"$counters"; then
    failed=1
    tail -5 "$counters" "$counters.error" >&2
  fi
}
table momentum_delta_rule_profile "tools/gpu_check.sh $build" profile
