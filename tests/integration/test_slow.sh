#!/usr/bin/env bash
# Why a run is slow: a rank that is slower than the others is named, the parts of each step add up to it, waiting for data shows as that,
# and the bill at the end adds up to the time of the run.
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
${CC:-cc} -O1 -Wall -Wextra -Werror -o "$work/slow" tests/integration/slow.c || exit 1
${CC:-cc} -shared -fPIC -O1 -Wall -Wextra -Werror -o "$work/hang.so" tests/integration/hang.c -ldl || exit 1
cd "$work" || exit 1

# ---- a slow rank: it is stopped three quarters of the time ----

"$lockstep" run "$config" -n 2 --run-dir straggler --set train.steps=1000000 --set evaluation.every_steps=0 --set model.hidden_size=128 \
    --set model.num_hidden_layers=4 --set data.sequence_length=64 --set train.global_batch_size=16 --set train.micro_batch_size=8 \
    >straggler.out 2>straggler.err </dev/null &
supervisor=$!
for _ in $(seq 300); do grep -qs '"kind":"step"' straggler/metrics.jsonl && break; sleep 0.1; done
pid=$(sed -n 's/.* process \([0-9]*\), attempt .*/\1/p' straggler/logs/rank-00001.log)
./slow "$pid" 30000 10000 &
slower=$!
named='"event":"straggler".*"rank":1,"host":"[^"]*","percent":[0-9.]*,"steps":[0-9]*'
for _ in $(seq 900); do
    grep -qs "$named" straggler/metrics.jsonl && break
    kill -0 $supervisor 2>/dev/null || break
    sleep 0.1
done
kill $slower
wait $slower
kill -INT $supervisor
wait $supervisor
check "a rank that is slower than the others is named" grep -q "$named" straggler/metrics.jsonl
check "it costs the others more than 5 %" awk -F'"percent":' '/"event":"straggler".*"rank":1,/ {split($2, p, ","); exit !(p[1] > 5)}' straggler/metrics.jsonl
check "the user is told on the console" grep -q "^straggler: rank 1 on $(hostname): the others wait for it [0-9]* % of each step" straggler.out

# ---- parts ----

seq 20000 >numbers.txt
"$lockstep" data prepare numbers.txt -o data >data.log 2>&1 || not_ok "data are prepared" data.log
LD_PRELOAD=$work/hang.so LS_HANG=slow LS_HANG_RANK=0 LS_HANG_MICROSECONDS=5000 \
    "$lockstep" run "$config" -n 1 --run-dir parts --set "data={train: [{path: $work/data/train}], sequence_length: 32}" --set evaluation.every_steps=0 \
    --set train.steps=60 --set checkpoint.every_steps=20 >parts.out 2>&1 || not_ok "a run with slow data ends well" parts.out
# Prints the named numbers of every line of a kind, one line each: numbers RUN KIND NAME...
numbers() {
    local run=$1 kind=$2
    shift 2
    awk -v kind="\"kind\":\"$kind\"" -v names="$*" '
        index($0, kind) {
            n = split(names, name, " "); line = ""
            for (i = 1; i <= n; i++) { match($0, "\"" name[i] "\":[-0-9.e+]*"); line = line " " substr($0, RSTART + length(name[i]) + 3, RLENGTH - length(name[i]) - 3) }
            print line
        }' "$run/metrics.jsonl"
}
parts="compute_seconds comm_exposed_seconds data_wait_seconds wait_seconds checkpoint_seconds"
add_up() { numbers "$1" step step_seconds $parts | awk '{d = $1 - $2 - $3 - $4 - $5 - $6; if (d < 0) d = -d; if (d > 1e-6 * $1 + 1e-8) bad++} END {exit !(NR >= 20 && !bad)}'; }
check "the parts of each step add up to it" add_up parts
check "with several ranks too" add_up straggler
check "waiting for slow data shows as that: most of the time" \
    bash -c "$(declare -f numbers); numbers parts step step_seconds data_wait_seconds | awk '{s += \$1; d += \$2} END {exit !(d > 0.5 * s)}'"
check "the bill says so" grep -qE "^    data +[0-9.]+ s +[0-9.]+ %" parts.out
check "and what to do about it, with a figure" grep -qE "^  to save it data: put the datasets on a faster .* \(about [0-9.]+ s less\)" parts.out
check "the rows of the bill add up to the time of the run" bash -c "$(declare -f numbers); numbers parts summary wall_seconds $parts repeated_seconds rest_seconds |
    awk '{d = \$1 - \$2 - \$3 - \$4 - \$5 - \$6 - \$7 - \$8; if (d < 0) d = -d; exit !(d < 0.2 * \$1)}'"
