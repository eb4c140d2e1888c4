#!/usr/bin/env bash
# Formatting and static checks:  tools/lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
step() { # step NAME COMMAND...
  local name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "lint: $name ok"
  else
    echo "$output"
    echo "lint: $name FAILED"
    failed=1
  fi
}
mapfile -t sources < <(git ls-files -- '*.cpp' '*.h' '*.cu' '*.cuh')
mapfile -t scripts < <(git ls-files -- '*.sh' .ci/run)
mapfile -t python < <(git ls-files -- '*.py')
step "clang-format (make format mends it)" clang-format --dry-run -Werror "${sources[@]}"
step shellcheck shellcheck "${scripts[@]}"
step ruff .venv/bin/ruff check --quiet "${python[@]}"
# clang-tidy reads the files without torch: with its headers a file takes most of a minute.
# It wants every file's own command, which a build of joined files has not.
cmake -S . -B build-lint -G Ninja -DMDN_TORCH=OFF -DCMAKE_UNITY_BUILD=OFF >/dev/null
mapfile -t tidy < <(git ls-files -- 'mdn/core/*.cpp' 'mdn/io/*.cpp' 'mdn/tokenizer/*.cpp' \
  'mdn/data/*.cpp' 'mdn/kernels/*.cpp' 'mdn/kernels/reference/*.cpp')
# shellcheck disable=SC2317  # called through step
run_tidy() { printf '%s\n' "${tidy[@]}" | xargs -P"$(nproc)" -n1 clang-tidy --quiet -p build-lint; }
step clang-tidy run_tidy
exit $failed
