#!/usr/bin/env bash
# Everything that needs a GPU, in one go:  tools/gpu_check.sh BUILD [RESULTS]
#
# Runs the programs of a CUDA build, or of a folder that tools/gpu_check/carry.sh made of one, and
# writes RESULTS/*_cuda.md, by default bench/results: docs/gpu_check.md. One file a part in
# tools/gpu_check/; MDN_GPU_CHECK names those to run. MDN_GPU_LOGS: a folder that keeps every log.
# Exit status 1 when any check failed; the tables are written all the same.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck disable=SC2034  # the parts read these
build=$1
results=${2:-bench/results}
only=${MDN_GPU_CHECK:-correctness operators verify sanitizer accuracy speed profile small_ops training_step generate}
logs=${MDN_GPU_LOGS:-$(mktemp -d)}
mkdir -p "$results" "$logs"
failed=0
# shellcheck source=/dev/null
. tools/gpu_check/common.sh
for part in $only; do
  start=$SECONDS
  # shellcheck source=/dev/null
  . "tools/gpu_check/$part.sh"
  echo "gpu_check: $part took $((SECONDS - start)) s"
done
[[ -n ${MDN_GPU_LOGS:-} ]] || rm -rf "$logs"
if [[ $failed == 0 ]]; then echo "gpu_check: all checks passed"; else echo "gpu_check: FAILED"; fi
exit $failed
