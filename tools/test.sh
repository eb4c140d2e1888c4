#!/usr/bin/env bash
# Runs the C++ tests, then the Python ones:  tools/test.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
MDN_BUILD=$PWD/$build .venv/bin/python -m pytest -q tests/python
# Without those of the label `slow` (CONTRIBUTING.md).
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" -LE slow
