# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# Speed of the small fused operators.
small_ops() {
  "$build/bench_small_ops_cuda" || failed=1
}
table small_ops "$build/bench_small_ops_cuda" small_ops
