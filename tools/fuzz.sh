#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while:
#   tools/fuzz.sh SECONDS [TARGET...]       (targets: the folders of fuzz/corpus)
# New inputs are collected in build-fuzz/corpus, findings in build-fuzz/findings. Exits 1 if there is
# a finding.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: tools/fuzz.sh SECONDS [TARGET...]}
shift
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(ls fuzz/corpus)

cmake -S . -B build-fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DMDN_TORCH=OFF -DMDN_FUZZ=ON >/dev/null
cmake --build build-fuzz --target "${targets[@]/%/_fuzz}"

mkdir -p build-fuzz/findings
failed=()
for target in "${targets[@]}"; do
  mkdir -p "build-fuzz/corpus/$target"
  options=(-max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1
    -artifact_prefix="build-fuzz/findings/$target-")
  [[ -f fuzz/$target.dict ]] && options+=(-dict="fuzz/$target.dict")
  log=build-fuzz/$target.log
  if "build-fuzz/${target}_fuzz" "${options[@]}" "build-fuzz/corpus/$target" \
    "fuzz/corpus/$target" >"$log" 2>&1; then
    executed=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
    echo "fuzz: $target: ${executed// /} inputs, ${covered:-?} edges, no finding"
  else
    failed+=("$target")
    echo "fuzz: $target: FINDING, see $log" >&2
    tail -30 "$log" >&2
  fi
done
if ((${#failed[@]})); then
  exit 1
fi
