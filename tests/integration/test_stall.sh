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

# A run in the background. begin RUN ARGUMENTS...
begin() {
    local run=$1
    shift
    begin_run "$run" "$lockstep" run "$config" --run-dir "$run" "${endless[@]}" --set fault.max_restarts=0 "$@"
}
# The coordinator counts only time in which it got on itself, so a busy machine does not lengthen what it tells.
told_within() { # SECONDS RUN
    awk -F'"seconds":' -v limit="$1" '/"event":"stall"/ {split($2, t, ","); exit !(t[1] + 0 > 0 && t[1] + 0 < limit)}' "$2/metrics.jsonl"
}
stop() { # RUN
    kill -INT "${supervisors[$1]}" 2>/dev/null
    wait "${supervisors[$1]}"
    end_watched "${supervisors[$1]}"
}

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
pid=$(worker_pid stopped 0)
last=$(worker_pid restarted 2)
kill -STOP "$pid" "$last"
ends 8 "rank 0 on $host.* pid $pid, in phase .*: it is stopped by a signal" "a stopped rank 0 is named with host, pid and phase" stopped
check "within the timeout" told_within $((3 * timeout)) stopped
dump=$(echo stopped/logs/stall-a1-step*.txt)
check "the dump has all three ranks and the collective that did not end" \
    bash -c "[ \$(grep -c '^rank [0-2] on $host, pid' $dump) = 3 ] && grep -q 'collective [0-9]*, not ended' $dump"
check "and the last operations of each" bash -c "[ \$(grep -c ' s ago  step ' $dump) -ge 150 ]"
until_events restarted recovered 1
stop restarted
check "where restarts are left the run goes on without the stopped rank 2" grep -q '"kind":"step".*"attempt":2' restarted/metrics.jsonl
check "its process is gone" bash -c "[ ! -e /proc/$last ] || grep -q '^State:.Z' /proc/$last/status"
check "the fault is in metrics.jsonl" grep -q '"event":"fault".*"rank":2,"code":8,"text":"[^"]*stopped by a signal' restarted/metrics.jsonl
check "and the stall, for programs" grep -q '"event":"stall".*"verdict":"stopped","rank":2,"host":"[^"]*","phase":".*"dump":"' restarted/metrics.jsonl

# ---- a host that is frozen: everything stops for longer than the timeout, and goes on; and a read that does not come back ----

begin frozen -n 2 --set fault.coordinator_timeout_seconds=4
hang read 1 stuck -n 3
until_steps frozen 5
until_steps stuck 5
everything=("$(sed -n 's/^pid //p' frozen/lock)" "$(worker_pid frozen 0)" "$(worker_pid frozen 1)")
kill -STOP "${everything[@]}"
touch now
ends 8 "rank 1 on $host.* in phase data of step [0-9]+: thread ls-prefetch waits.*read of $work/hole; ranks 0, 2 wait for it in host collective [0-9]+" \
    "a rank that is stuck in a read is named with thread and file, and who waits for it" stuck
check "within the timeout too" told_within $((3 * timeout)) stuck
sleep 5 # longer than a report takes, if somebody were to blame the frozen ones, and than ranks wait for a coordinator's word
steps=$(steps_told frozen)
kill -CONT "${everything[@]}"
until_steps frozen $((steps + 20))
check "a frozen host is nobody's fault: the run goes on" \
    bash -c "kill -0 ${supervisors[frozen]} && ! grep -q '\"event\":\"fault\"' frozen/metrics.jsonl && ! ls frozen/logs/stall-* 2>/dev/null"
stop frozen

ends 8 "rank 2 on .* in phase MPI_Init: it waits.*read of $work/hole" "a rank that hangs in MPI_Init is named" init
ends 8 "rank 0 on .*phase join: it waits.*read of $work/hole; rank 1 waits for it in host collective" \
    "a rank that hangs as it opens its data is named with the phase and who waits for it" join
