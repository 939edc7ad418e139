#!/usr/bin/env bash
# Hosts by three kinds of names in one hostfile: short, with a domain, by address. mpirun calls each as it likes; what is lost is told by
# the name that the host has for itself, as everything else is.
source "$(dirname "$0")/hosts/hosts.sh"
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
mkdir "$work/shared"
cd "$work/shared" || exit 1
hosts_up 3
export OMP_NUM_THREADS=1
echo "127.0.0.1 localhost" >"$hosts/names"
for i in 1 2 3; do
    on h$i hostname h$i.cluster.local
    ln -s h$i "$hosts/h$i.cluster.local"
    ln -s h$i "$hosts/10.77.0.$i"
    echo "10.77.0.$i h$i.cluster.local h$i" >>"$hosts/names"
done
printf 'h1 slots=1\nh2.cluster.local slots=2\n10.77.0.3 slots=2\n' >three

begin_run named on h1 "$lockstep" run "$config" -n 5 --hostfile three --run-dir named --set train.steps=100000000 \
    --set checkpoint.every_steps=5 --set train.micro_batch_size=1 --set evaluation.every_steps=0 --set fault.min_ranks=2
until_steps named 6

lose_host h3
until_events named attempt 1
check "a host of the hostfile by address is lost by its name, with its ranks" \
    grep -q '"event":"fault".*host h3.cluster.local with 2 ranks was lost .*"host":"h3.cluster.local","scope":"node"' named/metrics.jsonl
until_steps named $(($(steps_told named) + 6))
kill -KILL "$(pids_on h2 lockstep-worker | head -n 1)"
until_events named attempt 2
check "a rank is lost on a host with a domain" \
    grep -q '"event":"fault".*rank [12] on h2.cluster.local was lost .*"host":"h2.cluster.local","scope":"rank"' named/metrics.jsonl
until_steps named $(($(steps_told named) + 6))
lose_host h3
until_events named attempt 3
check "the second loss of that host is counted with the first" grep -q '"event":"host_left_out".*host h3.cluster.local has lost ranks too often' named/metrics.jsonl
check "it is left out of the hosts, by its address" bash -c "grep -oE -- '-host [^ ]+' named/logs/launcher.log | tail -n 1 | grep -qx -- '-host h1:1,h2.cluster.local:2'"
until_steps named $(($(steps_told named) + 6))
kill -INT "$(pids_on h1 lockstep | head -n 1)"
ends 130 "" "the run is stopped" named
