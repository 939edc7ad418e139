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
    begin_run "$1" on h1 "$lockstep" run "$config" -n 4 --hostfile two --run-dir "$1" --set train.steps=1000000 --set evaluation.every_steps=0 \
        --set fault.stall_timeout_seconds=5 --set fault.max_restarts=0
    until_steps "$1" 5
}

begin stopped
sleep 2 # a report or two
pid=$(worker_pid stopped 2)
kill -STOP "$pid"
ends 8 "rank 2 on h2.* pid $pid, in phase .*: it is stopped by a signal" "a stopped rank of the other host, the first there, is named" stopped
check "the dump has what all four did last" \
    bash -c '[ $(grep -cE "^rank [01] on h1, pid|^rank [23] on h2, pid" stopped/logs/stall-*) = 4 ] && [ $(grep -c " s ago  step " stopped/logs/stall-*) -ge 150 ]'

begin cut
sleep 2 # the same
link h2 down
ends 6 "host h2 with 2 ranks was lost at step [0-9]+: not heard for [0-9]+ s, ranks 2, 3 last seen in phase .*ranks? 0.* wait.*Check the network to h2" \
    "a host whose link is cut is named, with its ranks and those that wait; it is lost, so the code is 6" cut
