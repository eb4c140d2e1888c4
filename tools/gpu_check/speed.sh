# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# Speed of momentum_delta_rule.
speed() {
  "$build/bench_momentum_delta_rule_cuda" || failed=1
}
table momentum_delta_rule_speed "$build/bench_momentum_delta_rule_cuda" speed
