#!/usr/bin/env bash
# lockstep bench: several rank counts, their table, files and picture; failures of single runs, and what no run could do.
source "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
config=$PWD/configs/tiny-gpt2.yaml
cd "$work" || exit 1

expect 0 "^ +2 +8 .*%.*\|.*%" "three rank counts are measured and predicted" \
    "$lockstep" bench "$config" -n 4,1,2 --steps 4 --warm-up 2 --repeat 2 --output strong
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
