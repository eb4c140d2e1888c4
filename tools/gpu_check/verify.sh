# shellcheck shell=bash disable=SC2034,SC2154  # sourced by tools/gpu_check.sh
# `mdn verify --device cuda`: every golden model in float32 and bfloat16.
verify() {
  echo
  echo "Of each model the comparison nearest to what is allowed (error / allowed)."
  echo
  echo "| golden | dtype | comparisons | nearest | of | result |"
  echo "|---|---|---|---|---|---|"
  local golden name dtype log status pids=()
  for golden in tests/data/goldens/*/config.json; do
    name=$(basename "$(dirname "$golden")")
    for dtype in float32 bfloat16; do
      log=$logs/verify.$name.$dtype
      (
        OMP_NUM_THREADS=2 timeout 200 "$build/mdn" verify "tests/data/goldens/$name" \
          --device cuda --dtype $dtype --all >"$log" 2>&1
        echo $? >"$log.status"
      ) &
      pids+=($!)
      ((${#pids[@]} % 8 == 0)) && wait "${pids[@]}"
    done
  done
  wait "${pids[@]}"
  for golden in tests/data/goldens/*/config.json; do
    name=$(basename "$(dirname "$golden")")
    for dtype in float32 bfloat16; do
      log=$logs/verify.$name.$dtype
      status=$(cat "$log.status")
      awk -v name="$name" -v dtype=$dtype -v status="$status" '
        /^  (ok  |FAIL)  .*\(allowed/ {
          ++n
          allowed = $4
          sub(/\)/, "", allowed)
          share = allowed > 0 ? $2 / allowed : ($2 > 0 ? 1e9 : 0)
          if (share >= worst) { worst = share; at = $5; pair = $2 " / " allowed }
        }
        END {
          printf "| %s | %s | %d | %s | %s | %s |\n", name, dtype, n, pair, at,
                 status == 0 ? "ok" : "FAILED"
        }' "$log"
      if [[ $status != 0 ]]; then
        failed=1
        {
          echo "== verify $name $dtype"
          grep -vE '^  ok' "$log" | head -20
        } >&2
      fi
    done
  done
}
table verify "tools/gpu_check.sh $build" verify
