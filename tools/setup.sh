#!/usr/bin/env bash
# Installs what is missing: Debian packages and a Python environment in .venv that holds torch (its
# libtorch is what we link), nvcc when CUDA is on, and what the tests use. Idempotent: when all is
# there it takes a moment and prints one line.
#   tools/setup.sh ON|OFF      (whether the CUDA backend will be built)
set -euo pipefail
cd "$(dirname "$0")/.."
cuda=${1:-OFF}
start=$SECONDS

packages=(g++ cmake ninja-build make ccache mold pkg-config python3 python3-venv git libfmt-dev
  nlohmann-json3-dev libcli11-dev libhwy-dev libpcre2-dev libutf8proc-dev libssl-dev libzstd-dev
  zlib1g-dev libgtest-dev libgmock-dev libbenchmark-dev clang-format clang-tidy shellcheck)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
if ((${#missing[@]})); then
  echo "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
  run=()
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || {
      echo "setup: not root and no sudo. As root: apt-get install ${missing[*]}" >&2
      exit 1
    }
    run=(sudo)
  fi
  log=$(mktemp)
  if ! { "${run[@]}" apt-get update && "${run[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "setup: apt-get could not install: ${missing[*]} (log: $log)" >&2
    exit 1
  fi
  rm -f "$log"
fi

# The stamp holds the pinned list, so a changed pin installs again.
files=(tools/requirements.txt tools/requirements-test.txt)
[[ $cuda == ON ]] && files+=(tools/requirements-cuda.txt)
want=$(cat "${files[@]}")
stamp=.venv/installed-$cuda
if [[ ! -f $stamp || $(cat "$stamp") != "$want" ]]; then
  echo "setup: Python environment .venv with torch (about 5 GB on disk, 2-4 minutes)"
  python3 -m venv .venv || {
    echo "setup: python3 -m venv failed; a broken .venv can be removed with rm -rf .venv" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]/#/-r}" || {
    echo "setup: pip could not install tools/requirements*.txt into .venv" >&2
    exit 1
  }
  printf '%s' "$want" >"$stamp"
fi
echo "setup: ready ($((SECONDS - start)) s)"
