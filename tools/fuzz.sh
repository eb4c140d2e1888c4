#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for some seconds of CPU time, whatever else the
# machine does:
#   tools/fuzz.sh [--report FILE] SECONDS [TARGET...]       (targets: the folders of fuzz/corpus)
# New inputs are collected in build-fuzz/corpus, findings in build-fuzz/findings, what each target
# did in its last run in build-fuzz/records; --report makes a table of all records. Exits 1 if there
# is a finding.
set -euo pipefail
cd "$(dirname "$0")/.."
report=
if [[ ${1:-} == --report ]]; then
  report=$2
  shift 2
fi
seconds=${1:?usage: tools/fuzz.sh [--report FILE] SECONDS [TARGET...]}
shift
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(ls fuzz/corpus)

cmake -S . -B build-fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DMDN_TORCH=OFF -DMDN_FUZZ=ON >/dev/null
cmake --build build-fuzz --target "${targets[@]/%/_fuzz}"
mkdir -p build-fuzz/findings build-fuzz/records
sources=(fuzz mdn/core mdn/data mdn/io mdn/model mdn/tokenizer)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[[ -z $(git status --porcelain -- "${sources[@]}" 2>/dev/null) ]] || commit+=" and changes"

# run TARGET: in slices of wall-clock time, as libFuzzer counts, until its CPU time is reached.
run() {
  local target=$1 log=build-fuzz/$1.log spent=0 executed=0 covered=? times
  local options=(-timeout=20 -rss_limit_mb=4096 -print_final_stats=1
    -artifact_prefix="build-fuzz/findings/$target-")
  [[ -f fuzz/$target.dict ]] && options+=(-dict="fuzz/$target.dict")
  mkdir -p "build-fuzz/corpus/$target"
  : >"$log"
  while ((spent < seconds * 100)); do
    local slice=build-fuzz/$target.slice
    times=build-fuzz/$target.times
    # user and system seconds of the slice, in a file of its own
    if ! (
      TIMEFORMAT='%U %S'
      { time "build-fuzz/${target}_fuzz" "${options[@]}" \
        -max_total_time=$(((seconds * 100 - spent + 99) / 100)) \
        "build-fuzz/corpus/$target" "fuzz/corpus/$target" >"$slice" 2>&1; } 2>"$times"
    ); then
      cat "$slice" >>"$log"
      return 1
    fi
    cat "$slice" >>"$log"
    spent=$((spent + $(awk 'END { printf "%d", 100 * ($1 + $2) }' "$times")))
    executed=$((executed + $(sed -n 's/^stat::number_of_executed_units: *//p' "$slice")))
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$slice" | tail -1)
  done
  printf '%s\t%d\t%d\t%s\t%s\t%s\n' "$target" $((spent / 100)) "$executed" "${covered:-?}" \
    "$commit" "$(date -u +%F)" \
    >"build-fuzz/records/$target"
  echo "fuzz: $target: $executed inputs in $((spent / 100)) CPU seconds, ${covered:-?} edges, no finding"
}

failed=()
for target in "${targets[@]}"; do
  if ! run "$target"; then
    failed+=("$target")
    rm -f "build-fuzz/records/$target"
    echo "fuzz: $target: FINDING, see build-fuzz/$target.log" >&2
    tail -30 "build-fuzz/$target.log" >&2
  fi
done

if [[ -n $report ]]; then
  {
    echo "# Fuzzing"
    echo
    echo "Each target of \`fuzz/\` under libFuzzer with AddressSanitizer and"
    echo "UndefinedBehaviorSanitizer: CPU time (user + system) of the last run without a finding,"
    echo "executions, covered edges. A target that is not listed has had no such run."
    echo
    echo "- command: \`tools/fuzz.sh --report $report SECONDS [TARGET...]\`"
    echo "- compiler: $(clang++ --version | head -1); inputs up to 1 MiB grow from \`fuzz/corpus\`"
    echo
    echo "| target | CPU seconds | executions | edges | commit | date |"
    echo "|---|---|---|---|---|---|"
    sort build-fuzz/records/* | awk -F'\t' '{ printf "| %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6 }'
  } >"$report"
  echo "fuzz: wrote $report"
fi
if ((${#failed[@]})); then
  exit 1
fi
