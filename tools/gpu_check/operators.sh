# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# The Kimi delta rule, the small fused operators and whole decoders against float64 on the CPU.
operators() {
  echo
  echo "| run | passed | skipped | result |"
  echo "|---|---|---|---|"
  run_tests kimi_delta_rule kimi_delta_rule_cuda_test '*'
  run_tests small_operators cuda_ops_test '*' OMP_NUM_THREADS=4
  run_tests attention cuda_attention_test '*' OMP_NUM_THREADS=2
  run_tests decoders cuda_decoder_test '*' OMP_NUM_THREADS=2
  run_tests generation cuda_generator_test '*' OMP_NUM_THREADS=2
}
table operators_correctness "tools/gpu_check.sh $build" operators
