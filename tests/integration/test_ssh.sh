#!/usr/bin/env bash
# Several hosts through real ssh, where it is there: a run, a host that lets nobody in, a connection that ends in the middle of a run.
source "$(dirname "$0")/hosts/hosts.sh"
if [ ! -x /usr/sbin/sshd ]; then
    echo "skip - hosts through real ssh # there is no sshd (Debian: openssh-server)"
    # A script without any promise kept counts as failed.
    echo "ok - that there is no sshd is told"
    exit 0
fi
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
mkdir "$work/shared"
cd "$work/shared" || exit 1
export LS_TEST_SSH=1
hosts_up 3
printf 'h1 slots=1\nh2 slots=1\nh3 slots=2\n' >three
settings=(--set train.reduction=fixed --set train.micro_batch_size=1)
run() { on h1 "$lockstep" run "$config" --hostfile three -n 4 "$@"; }

# ---- logins that fail ----
sed '/^h3,/d' "$hosts/known" >known && mv "$hosts/known" known.all && mv known "$hosts/known"
expect 6 "it says 'Host key verification failed'\. See that 'ssh HOST true' works from here without a password or a question\. Look at" \
    "a host with an unknown key is told" run --run-dir unknown
mv known.all "$hosts/known"
mv "$hosts/key.pub" key.pub && touch "$hosts/key.pub"
expect 6 "it says '[^ ]*@h[23]: Permission denied \(.*\)'\. See that 'ssh h[23] true' works" "a login that is refused is told" run --run-dir refused
mv key.pub "$hosts/key.pub"
# shellcheck disable=SC2046
kill $(pids_on h3 sshd)
expect 6 "it says 'ssh: connect to host h3 port 22: Connection refused'\. See that 'ssh h3 true' works" "a host without sshd is told" run --run-dir absent
expect 1 "^WRONG ranks .*\(ssh: connect to host h3 port 22: Connection refused\)" "doctor tells it too" \
    on h1 "$lockstep" doctor --hostfile three -n 4 --seconds 2
on h3 /usr/sbin/sshd -f "$hosts/sshd_config" -E "$hosts/sshd3.log"

# ---- a run ----
# A connection ends in its middle. ssh gives a host none of the variables of this one.
export ONEDNN_MAX_CPU_ISA=SSE41
begin_run cut on h1 "$lockstep" run "$config" --hostfile three -n 4 --run-dir cut "${settings[@]}" --set train.steps=1000 --set checkpoint.every_steps=20
until_steps cut 25
# Rank 0 stands still until mpirun has noticed, which takes seconds: the run would end before.
worker=$(worker_pid cut 0)
kill -STOP "$worker"
check "ranks on the other hosts were started by sshd" test -n "$(pids_on h3 lockstep-worker)"
# shellcheck disable=SC2046
kill -KILL $(pids_on h3 sshd | sort -n | tail -n +2) # all but the one that listens
until_events cut fault 1
kill -CONT "$worker" 2>/dev/null # it may have been ended by now
ends 0 "" "a run whose ssh ends in its middle goes on" cut
check "the host is named" grep -q '"code":6,"text":"communication: host h3 with 2 ranks was lost at step [0-9]*: mpirun has lost a daemon, and ssh its connection\. See that h3 runs' \
    cut/metrics.jsonl
check "it went on with all ranks" bash -c 'grep "\"event\":\"joined\",\"attempt\":2," cut/metrics.jsonl | grep -q "\"ranks\":4"'
begin_run calm on h1 "$lockstep" run "$config" -n 2 --run-dir calm "${settings[@]}" --set train.steps=1000
ends 0 "" "a run on one host" calm
check "leaves the same weights, bit for bit" cmp cut/final/model.safetensors calm/final/model.safetensors
# mpirun does not wait for the end of its daemons.
for host in h1 h2 h3; do until_true 30 "what is on $host ends" $$ /dev/null is_clean $host && ok "nothing is left on $host"; done
