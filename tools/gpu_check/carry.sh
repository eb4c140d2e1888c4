#!/usr/bin/env bash
# Packs what tools/gpu_check.sh needs of a CUDA build into one folder, to be copied to a machine
# with a GPU beside a checkout of the same commit:  tools/gpu_check/carry.sh BUILD FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1 folder=$2
programs=(momentum_delta_rule_cuda_test kimi_delta_rule_cuda_test cuda_ops_test cuda_attention_test
  cuda_decoder_test cuda_generator_test mdn
  accuracy_momentum_delta_rule_cuda bench_momentum_delta_rule_cuda bench_small_ops_cuda
  bench_training_step bench_generate)
rm -rf "$folder"
mkdir -p "$folder/lib"
cp "${programs[@]/#/$build/}" "$folder/"
# The libraries of these that neither the machine's system nor its torch has.
for program in "${programs[@]}"; do ldd "$folder/$program"; done | awk '$3 ~ /^\// {print $3}' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[^/]*)\.so' |
  grep -vE '/site-packages/(torch|nvidia)/' | xargs -I{} cp -L {} "$folder/lib/"
git describe --always --dirty >"$folder/commit"
strip "$folder"/lib/* "${programs[@]/#/$folder/}"
gzip "$folder"/lib/* "${programs[@]/#/$folder/}"
du -sh "$folder"
