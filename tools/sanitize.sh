#!/usr/bin/env bash
# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer:  tools/sanitize.sh JOBS
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$1
cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMDN_SANITIZE=ON >/dev/null
cmake --build build-sanitize -j "$jobs"
# libtorch keeps its registries and thread pools until the process ends: not leaks of ours.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir build-sanitize --output-on-failure -j "$jobs"
