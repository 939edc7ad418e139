#!/usr/bin/env bash
# Stalls over two virtual hosts: a stopped rank of the other host is named though it is the one that reports for it, and so is a host
# whose link is cut.
source "$(dirname "$0")/hosts/hosts.sh"
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
mkdir "$work/shared"
cd "$work/shared" || exit 1
hosts_up 2
export OMP_NUM_THREADS=1
printf 'h1 slots=2\nh2 slots=2\n' >two

begin() { # RUN
    on h1 "$lockstep" run "$config" -n 4 --hostfile two --run-dir "$1" --set train.steps=1000000 --set evaluation.every_steps=0 \
        --set fault.stall_timeout_seconds=5 --set fault.max_restarts=0 >"$1.out" 2>"$1.err" </dev/null &
    supervisor=$!
    (sleep 120 && kill -KILL "$supervisor") >/dev/null 2>&1 &
    watchdog=$!
    for _ in $(seq 600); do
        [ "$(grep -c '"kind":"step"' "$1/metrics.jsonl" 2>/dev/null || true)" -ge 5 ] 2>/dev/null && return
        kill -0 "$supervisor" 2>/dev/null || break
        sleep 0.1
    done
    not_ok "the run $1 trains" "$1.err"
}
ends() { # CODE RUN TEXT WHAT
    local code=$1 status=0 since=$SECONDS
    shift
    wait "$supervisor" || status=$?
    kill "$watchdog" 2>/dev/null
    if [ "$status" -ne "$code" ]; then
        not_ok "$3 (exit $status, not $code)" "$1.err"
    elif ! grep -qE -- "$2" "$1.err"; then
        not_ok "$3 (no '$2')" "$1.err"
    elif [ $((SECONDS - since)) -gt 40 ]; then
        not_ok "$3 (only after $((SECONDS - since)) s)" "$1.err"
    else
        ok "$3"
    fi
}

begin stopped
sleep 2 # a report or two
pid=$(sed -n 's/.* process \([0-9]*\), attempt .*/\1/p' stopped/logs/rank-00002.log)
kill -STOP "$pid"
ends 8 stopped "rank 2 on h2.* pid $pid, in phase .*: it is stopped by a signal" "a stopped rank of the other host, the first there, is named"
check "the dump has what all four did last" \
    bash -c '[ $(grep -cE "^rank [01] on h1, pid|^rank [23] on h2, pid" stopped/logs/stall-*) = 4 ] && [ $(grep -c " s ago  step " stopped/logs/stall-*) -ge 150 ]'

begin cut
sleep 2
link h2 down
ends 6 cut "host h2 with 2 ranks was lost at step [0-9]+: not heard for [0-9]+ s, ranks 2, 3 last seen in phase .*ranks? 0.* wait.*Check the network to h2" \
    "a host whose link is cut is named, with its ranks and those that wait; it is lost, so the code is 6"
