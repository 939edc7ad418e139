#!/usr/bin/env bash
# Runs that stand still: the rank that holds them up is named with host, pid, phase and what it does, within the timeout, and the run
# ends with 8 or restarts; what every rank did last is in logs/. A frozen host is nobody's fault.
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
${CC:-cc} -shared -fPIC -O1 -Wall -Wextra -Werror -o "$work/hang.so" tests/integration/hang.c -ldl || exit 1
cd "$work" || exit 1
host=$(hostname)
timeout=3
endless=(--set train.steps=1000000 --set evaluation.every_steps=0 --set "fault.stall_timeout_seconds=$timeout")
declare -A supervisor watchdog

# A run in the background. begin RUN ARGUMENTS...
begin() {
    local run=$1
    shift
    "$lockstep" run "$config" --run-dir "$run" "${endless[@]}" --set fault.max_restarts=0 "$@" >"$run.out" 2>"$run.err" </dev/null &
    supervisor[$run]=$!
    # A run that does not end by itself shall not keep the tests from ending.
    (sleep 150 && kill -KILL "${supervisor[$run]}") >/dev/null 2>&1 &
    watchdog[$run]=$!
}
until_steps() { # RUN COUNT
    for _ in $(seq 600); do
        [ "$(grep -c '"kind":"step"' "$1/metrics.jsonl" 2>/dev/null || true)" -ge "$2" ] 2>/dev/null && return
        kill -0 "${supervisor[$1]}" 2>/dev/null || break
        sleep 0.1
    done
    not_ok "the run $1 trains" "$1.err"
}
# ends RUN TEXT WHAT: the run in the background ends with 8 and says TEXT, both before half a minute is over.
ends() {
    local status=0 since=$SECONDS
    wait "${supervisor[$1]}" || status=$?
    kill "${watchdog[$1]}" 2>/dev/null
    if [ "$status" -ne 8 ]; then
        not_ok "$3 (exit $status, not 8)" "$1.err"
    elif ! grep -qE -- "$2" "$1.err"; then
        not_ok "$3 (no '$2')" "$1.err"
    elif [ $((SECONDS - since)) -gt 30 ]; then
        not_ok "$3 (only after $((SECONDS - since)) s)" "$1.err"
    else
        ok "$3"
    fi
}
stop() { # RUN
    kill -INT "${supervisor[$1]}" 2>/dev/null
    wait "${supervisor[$1]}"
    kill "${watchdog[$1]}" 2>/dev/null
}
pid_of() { sed -n 's/.* process \([0-9]*\), attempt .*/\1/p' "$1/logs/rank-0000$2.log" | tail -n 1; } # RUN RANK

# ---- hangs in the start; they wait beside what follows ----

seq 20000 >numbers.txt
"$lockstep" data prepare numbers.txt -o data >data.log 2>&1 || not_ok "data are prepared" data.log
mkfifo hole
hang() { # WHERE RANK RUN ARGUMENTS...
    LD_PRELOAD=$work/hang.so LS_HANG=$1 LS_HANG_RANK=$2 LS_HANG_FIFO=$work/hole LS_HANG_FILE=$work/now LS_HANG_NAME=data/train/ \
        begin "$3" --set "data={train: [{path: $work/data/train}], sequence_length: 32}" "${@:4}"
}
hang mpi 2 init -n 3 --set fault.start_timeout_seconds=8
hang open 0 join -n 2 --set fault.start_timeout_seconds=10

# ---- stopped processes ----

begin stopped -n 3
begin restarted -n 3 --set fault.max_restarts=1
until_steps stopped 5
until_steps restarted 5
pid=$(pid_of stopped 0)
last=$(pid_of restarted 2)
kill -STOP "$pid" "$last"
ends stopped "rank 0 on $host.* pid $pid, in phase .*: it is stopped by a signal" "a stopped rank 0 is named with host, pid and phase"
dump=$(echo stopped/logs/stall-a1-step*.txt)
check "the dump has all three ranks and the collective that did not end" \
    bash -c "[ \$(grep -c '^rank [0-2] on $host, pid' $dump) = 3 ] && grep -q 'collective [0-9]*, not ended' $dump"
check "and the last operations of each" bash -c "[ \$(grep -c ' s ago  step ' $dump) -ge 150 ]"
for _ in $(seq 300); do grep -q '"kind":"step".*"attempt":2' restarted/metrics.jsonl && break; sleep 0.1; done
stop restarted
check "where restarts are left the run goes on without the stopped rank 2" grep -q '"kind":"step".*"attempt":2' restarted/metrics.jsonl
check "its process is gone" bash -c "[ ! -e /proc/$last ] || grep -q '^State:.Z' /proc/$last/status"
check "the fault is in metrics.jsonl" grep -q '"event":"fault".*"rank":2,"code":8,"text":"[^"]*stopped by a signal' restarted/metrics.jsonl
check "and the stall, for programs" grep -q '"event":"stall".*"verdict":"stopped","rank":2,"host":"[^"]*","phase":".*"dump":"' restarted/metrics.jsonl

# ---- a host that is frozen: everything stops for longer than the timeout, and goes on; and a read that does not come back ----

begin frozen -n 2
hang read 1 stuck -n 3
until_steps frozen 5
until_steps stuck 5
everything=("$(sed -n 's/^pid //p' frozen/lock)" "$(pid_of frozen 0)" "$(pid_of frozen 1)")
kill -STOP "${everything[@]}"
touch now
ends stuck "rank 1 on $host.* in phase data of step [0-9]+: thread ls-prefetch waits.*read of $work/hole; ranks 0, 2 wait for it in host collective [0-9]+" \
    "a rank that is stuck in a read is named with thread and file, and who waits for it"
sleep 2
steps=$(grep -c '"kind":"step"' frozen/metrics.jsonl)
kill -CONT "${everything[@]}"
until_steps frozen $((steps + 20))
check "a frozen host is nobody's fault: the run goes on" \
    bash -c "kill -0 ${supervisor[frozen]} && ! grep -q '\"event\":\"fault\"' frozen/metrics.jsonl && ! ls frozen/logs/stall-* 2>/dev/null"
stop frozen

ends init "rank 2 on .* in phase MPI_Init: it waits.*read of $work/hole" "a rank that hangs in MPI_Init is named"
ends join "rank 0 on .*phase join: it waits.*read of $work/hole; rank 1 waits for it in host collective" \
    "a rank that hangs as it opens its data is named with the phase and who waits for it"
