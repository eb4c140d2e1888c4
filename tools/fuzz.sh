#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for some seconds of CPU time, whatever else the
# machine does:
#   tools/fuzz.sh SECONDS [TARGET...]       (targets: the folders of fuzz/corpus)
#   tools/fuzz.sh --report                  (makes docs/results/fuzzing.md from all runs so far)
# New inputs are collected in build-fuzz/corpus, findings in build-fuzz/findings, what was run in
# build-fuzz/records; a finding ends the record of its target. Exits 1 if there is a finding.
set -euo pipefail
cd "$(dirname "$0")/.."

report() {
  local out=docs/results/fuzzing.md
  {
    echo "# Fuzzing"
    echo
    echo "Each target of \`fuzz/\` under libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer:"
    echo "CPU time (user + system), executions and covered edges since the last finding. Made by"
    echo "\`tools/fuzz.sh --report\` on $(date -u +%F); $(clang++ --version | head -1)."
    echo
    echo "| target | CPU seconds | executions | edges | commits |"
    echo "|---|---|---|---|---|"
    cat build-fuzz/records/* | awk -F'\t' '
      { cpu[$1] += $2; runs[$1] += $3; edges[$1] = $4 }
      index(commits[$1], $5) == 0 { commits[$1] = commits[$1] (commits[$1] == "" ? "" : ", ") $5 }
      END { for (t in cpu) printf "| %s | %.0f | %d | %s | %s |\n", t, cpu[t] / 100, runs[t], edges[t], commits[t] }' |
      sort
  } >"$out"
  echo "fuzz: wrote $out"
}
if [[ ${1:-} == --report ]]; then
  report
  exit
fi

seconds=${1:?usage: tools/fuzz.sh SECONDS [TARGET...], or --report}
shift
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(ls fuzz/corpus)
cmake -S . -B build-fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DMDN_TORCH=OFF -DMDN_FUZZ=ON >/dev/null
cmake --build build-fuzz --target "${targets[@]/%/_fuzz}"
mkdir -p build-fuzz/findings build-fuzz/records
sources=(fuzz mdn/core mdn/data mdn/io mdn/model mdn/tokenizer)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[[ -z $(git status --porcelain -- "${sources[@]}" 2>/dev/null) ]] || commit+=" with changes"

# run TARGET: in slices of at most a minute of wall-clock time, as libFuzzer counts, until its CPU
# time is reached. Hundredths of a second.
run() {
  local target=$1 log=build-fuzz/$1.log slice=build-fuzz/$1.slice times=build-fuzz/$1.times
  local spent=0 total=0 left cpu executed edges="?"
  local options=(-timeout=60 -rss_limit_mb=4096 -print_final_stats=1
    -artifact_prefix="build-fuzz/findings/$target-")
  [[ -f fuzz/$target.dict ]] && options+=(-dict="fuzz/$target.dict")
  mkdir -p "build-fuzz/corpus/$target"
  : >"$log"
  while ((spent < seconds * 100)); do
    left=$(((seconds * 100 - spent + 99) / 100))
    if ! (
      TIMEFORMAT='%U %S'
      { time "build-fuzz/${target}_fuzz" "${options[@]}" -max_total_time=$((left < 60 ? left : 60)) \
        "build-fuzz/corpus/$target" "fuzz/corpus/$target" >"$slice" 2>&1; } 2>"$times"
    ); then
      cat "$slice" >>"$log"
      return 1
    fi
    cat "$slice" >>"$log"
    cpu=$(awk 'END { printf "%d", 100 * ($1 + $2) }' "$times")
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$slice")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$slice" | tail -1)
    printf '%s\t%d\t%d\t%s\t%s\n' "$target" "$cpu" "$executed" "${edges:-?}" "$commit" \
      >>"build-fuzz/records/$target"
    spent=$((spent + cpu))
    total=$((total + executed))
  done
  echo "fuzz: $target: $total inputs in $((spent / 100)) CPU seconds, ${edges:-?} edges, no finding"
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
if ((${#failed[@]})); then
  exit 1
fi
