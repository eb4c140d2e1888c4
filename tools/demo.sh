#!/usr/bin/env bash
# From a clone to a passage: build, prepare the text, train on the CPU, write.
#   tools/demo.sh FOLDER ON|OFF(cuda) JOBS
# What exists is reused; the trained model of an earlier demo is trained anew (out/demo).
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 cuda=$2 jobs=$3
total=$SECONDS

stage() { # stage NAME COMMAND...: say what happens, run it, say how long it took
  local name=$1 start=$SECONDS
  shift
  echo
  echo "== $name"
  "$@"
  echo "== done in $((SECONDS - start)) s"
}

prepare() {
  if [[ -f out/shakespeare/manifest.json ]] && "$build/mdn" data --check out/shakespeare >/dev/null 2>&1; then
    echo "out/shakespeare is there"
  else
    "$build/mdn" data corpus/shakespeare.txt --out out/shakespeare
  fi
}

stage "1/4 compile the program" tools/build.sh "$build" "$cuda" "$jobs" --target mdn
stage "2/4 prepare the text: Shakespeare's works, 90% to train on, the end held out" prepare
stage "3/4 train a byte-level Momentum DeltaNet, at most 5 minutes" \
  "$build/mdn" train configs/demo/train.json --data out/shakespeare --out out/demo --overwrite
stage "4/4 let it write" "$build/mdn" generate out/demo --prompt $'KING RICHARD:\n' \
  --max-tokens 500 --temperature 0.8 --seed 1 --echo
echo
echo "The demo took $((SECONDS - total)) s. The loss curve: out/demo/loss_curve.svg"
echo "Talk to the model: $build/mdn generate out/demo --interactive"
