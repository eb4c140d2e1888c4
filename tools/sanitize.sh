#!/usr/bin/env bash
# The C++ tests, and the Python tests that run the program, under AddressSanitizer and
# UndefinedBehaviorSanitizer:  tools/sanitize.sh JOBS
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$1
# libtorch, which is not instrumented, keeps its registries and thread pools until the process ends:
# no leaks of ours. The build, too, runs the programs, to list their tests.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMDN_SANITIZE=ON >/dev/null
cmake --build build-sanitize -j "$jobs"
ctest --test-dir build-sanitize --output-on-failure -j "$jobs" -LE slow
# Those that load the operators into Python would need the sanitizer in Python itself.
MDN_BUILD=$PWD/build-sanitize .venv/bin/python -m pytest -q tests/python/test_generate.py \
  tests/python/test_train.py tests/python/test_wrong_inputs.py
