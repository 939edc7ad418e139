#!/usr/bin/env bash
# lockstep bench: several rank counts, their table, files and picture; failures of single runs, and what no run could do.
source "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
config=$PWD/configs/tiny-gpt2.yaml
cd "$work" || exit 1

expect 0 "^ +2 +8 .*%.*\|.*%" "three rank counts are measured and predicted" \
    "$lockstep" bench "$config" -n 4,1,2 --steps 4 --warm-up 2 --repeat 2 --output strong --set metrics.prometheus=.
check "Prometheus is told nothing of its runs" bash -c '! ls lockstep-*.prom'
check "the rows ascend" bash -c "[ \"\$(cut -d, -f1 strong/bench.csv | tr '\n' ' ')\" = 'ranks 1 2 4 ' ]"
check "every row has the steps of both runs" bash -c "[ \"\$(cut -d, -f5 strong/bench.csv | tr '\n' ' ')\" = 'steps_measured 8 8 8 ' ]"
check "the folder holds the numbers as JSON" grep -q '"scaling": "strong"' strong/bench.json
check "each run keeps its metrics and log" test -s strong/ranks-00002-1/metrics.jsonl -a -s strong/ranks-00004-2.log
check "and no checkpoint" bash -c "! compgen -G 'strong/*/checkpoints' && ! compgen -G 'strong/*/final'"
if command -v gnuplot >/dev/null; then
    check "there is a picture" bash -c "grep -q '<svg' strong/bench.svg && [ \$(wc -c <strong/bench.png) -gt 1000 ]"
else
    skip "there is a picture" "gnuplot is missing"
fi
expect 2 "strong is there already" "nothing is overwritten" "$lockstep" bench "$config" -n 1 --output strong

expect 0 '"global_batch_size": 16' "with --weak the batch grows with the ranks" \
    "$lockstep" bench "$config" -n 1,2 --weak --json --steps 2 --warm-up 1 --output weak
expect 2 " 9 +8 +failed: lockstep: exit 2 " "a run that fails is a row with its reason" \
    "$lockstep" bench "$config" -n 9,1 --steps 2 --warm-up 1 --output some
check "the last line says so" grep -q "^lockstep: exit 2 (usage): bench: the run on 9 ranks failed" expect.log
check "its neighbour was measured" grep -q '^1,1,8,0,2,' some/bench.csv

expect 2 "no numbers of workers" "without -n it is a usage error" "$lockstep" bench "$config"
expect 2 "names 2 twice" "a number given twice is refused" "$lockstep" bench "$config" -n 2,1,2
expect 2 "whole number" "a list that is none is refused" "$lockstep" bench "$config" -n 1,,2
expect 2 "Did you mean" "a wrong key is refused before anything runs" "$lockstep" bench "$config" -n 1 --output wrong --set train.step=3
check "and nothing is made" test ! -e wrong

"$lockstep" bench "$config" -n 1 --steps 900000 --output long >long.log 2>&1 </dev/null &
bench=$!
for _ in $(seq 200); do grep -qs '"step":9,' long/ranks-00001-1/metrics.jsonl && break; sleep 0.1; done
kill -TERM $bench
wait $bench
status=$?
if [ $status -eq 75 ] && grep -q "stopped by Terminated" long.log; then ok "SIGTERM ends the run that is going on, and the bench with 75"; else not_ok "SIGTERM ends the bench (exit $status)" long.log; fi
check "no process is left of it" bash -c "! ps ax -o args | grep -q '[l]ong/ranks'"

# scripts/bench/cpu beside a stand-in for PyTorch, whose steps take what STEP says: the real one is no part of the tests.
cpu=$OLDPWD/scripts/bench/cpu
cat >torch <<'END'
#!/bin/sh
[ "$1" = -c ] && exit 0
case "$*" in *--compile*) echo "no compiler here" >&2; exit 1 ;; esac
case "$*" in *"--rank 1"*) exit "${SECOND:-0}" ;; *"--rank 0"*) [ -z "${SECOND:-}" ] || exec sleep 600 ;; esac
steps=$(yes "$STEP" | head -n 23 | paste -sd,)
echo "{\"seconds\": [$steps], \"first_loss\": 4.2, \"validation_loss\": 2.5, \"parameters\": 1, \"gemm_gflops\": 1, \"version\": \"0\", \"peak_bytes\": 1}"
END
chmod +x torch
beside() { "$cpu" --lockstep "$lockstep" --python "$work/torch" --pairs 1 --steps 3 "$@"; }
STEP=1000 expect 0 "claim small above 2: holds .*1 pair\)" "two ranks beside DDP, a claim that holds" beside --ddp --sizes small --claim small=2
check "what two ranks do by twice one rank is in the table" grep -qE '^\| small: L4 .* per rank \|.*\[.*\|.*\[.*\|' expect.log
STEP=0.000001 expect 1 "claim small above 0.9: does not hold" "a claim that does not hold is exit 1" beside --ddp --sizes small --claim small=0.9
STEP=1 SECOND=3 expect 1 "ended with 3" "a rank of PyTorch's that fails ends the other" beside --ddp --sizes small
expect 2 "a claim about baby, which is not measured" "a claim about a size that is not measured is refused" beside --sizes small --claim baby=1
expect 2 "is no claim" "a claim without a number is refused" beside --sizes small --claim small
STEP=1000 expect 0 "1 alternating pairs; bf16, 2 ranks" "both sides train in bf16 when asked" beside --ddp --sizes small --precision bf16
if command -v bible >/dev/null; then
    STEP=1 expect 0 "validation loss, nats a character.*\| [0-9.]+ \[.*\| 2.5000 " "nanoGPT's example reports both losses" beside --example
else
    skip "nanoGPT's example reports both losses" "the program bible is missing (Debian: bible-kjv)"
fi
if command -v perf >/dev/null && perf record -q -o perf.data true 2>/dev/null; then
    expect 0 "products, attention.s too \| [1-9][0-9.]* %" "the profile says what share of a step products take" "${cpu%cpu}profile" --sizes small --steps 5
else
    skip "the profile says what share of a step products take" "perf is missing or may not record (Debian: linux-perf)"
fi
# 2048 tokens of 6 x 123,653,376 + 12 x 12 x 256 x 768 FLOPs at 188 GFLOP/s, and 123,849,984 parameters at 1052 M/s, by hand.
check "the floor of 124M's step is the sum of its products and AdamW" python3 -c '
import importlib.machinery, importlib.util, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("bench", sys.argv[1])
bench = importlib.util.module_from_spec(importlib.util.spec_from_file_location("bench", sys.argv[1], loader=loader))
loader.exec_module(bench)
assert abs(bench.floor_seconds(bench.SIZES["124M-long"], 123849984, 188e9, 1052e6) - 8.508338) < 1e-5
assert bench.quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)' "$cpu"
