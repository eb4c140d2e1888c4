#!/usr/bin/env bash
# Configures and compiles:  tools/build.sh FOLDER ON|OFF(cuda) JOBS
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 cuda=$2 jobs=$3
start=$SECONDS
if [[ $cuda == OFF ]] && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "build: CUDA off, no GPU found (CUDA=on compiles the GPU code all the same)"
fi
cmake -S . -B "$build" -G Ninja -DMDN_CUDA="$cuda" >"$build.configure.log" 2>&1 || {
  cat "$build.configure.log" >&2
  exit 1
}
mv "$build.configure.log" "$build/configure.log"
cmake --build "$build" -j "$jobs" "${@:4}"
echo "build: done in $((SECONDS - start)) s"
