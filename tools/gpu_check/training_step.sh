# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# Training steps: time, memory, kernels.
training_step() {
  local config rows steps
  while read -r config rows steps; do
    echo
    echo "## \`bench_training_step configs/$config.json $rows 4096 cuda bfloat16 $steps\`"
    echo
    "$build/bench_training_step" "configs/$config.json" "$rows" 4096 cuda bfloat16 "$steps" || failed=1
  done <<<"mdn_400m 8 20
mdn_hybrid_3_1 8 6
mdn_1.3b 4 5"
}
table training_step "$build/bench_training_step" training_step
