# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# Training steps: time, memory, kernels; the hybrid with the chosen attention, cuDNN's, and with flash.
training_step() {
  local config rows steps attention
  while read -r config rows steps attention; do
    echo
    echo "## \`bench_training_step configs/$config.json $rows 4096 cuda bfloat16 $steps $attention\`"
    echo
    "$build/bench_training_step" "configs/$config.json" "$rows" 4096 cuda bfloat16 "$steps" \
      "$attention" || failed=1
  done <<<"mdn_400m 8 20 chosen
mdn_hybrid_3_1 8 6 chosen
mdn_hybrid_3_1 8 6 flash
mdn_1.3b 4 5 chosen"
}
table training_step "$build/bench_training_step" training_step
