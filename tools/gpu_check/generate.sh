# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# Generation: tokens a second by batch size.
generate() {
  local config temperature tokens
  while read -r config temperature tokens; do
    echo
    echo "## \`bench_generate configs/$config.json cuda bfloat16 $tokens $temperature\`"
    echo
    "$build/bench_generate" "configs/$config.json" cuda bfloat16 "$tokens" "$temperature" || failed=1
  done <<<"mdn_400m 0 256
mdn_400m 0.8 32
gdn_400m 0 64
comba_400m 0 64
kda_400m 0 64
mamba2_400m 0 64
mdn_hybrid_3_1 0 32
transformer_400m 0 32"
}
table generate "$build/bench_generate" generate
