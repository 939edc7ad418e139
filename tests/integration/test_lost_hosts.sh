#!/usr/bin/env bash
# A run over three virtual hosts that loses one twice, goes on without it with the ranks that fault.min_ranks allows, ends where
# fewer are left than that, and resumes: with the weights of a run that nothing disturbed. And one whose rank on a host dies at every start.
source "$(dirname "$0")/hosts/hosts.sh"
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
mkdir "$work/shared"
cd "$work/shared" || exit 1
hosts_up 3
export OMP_NUM_THREADS=1
printf 'h1 slots=2\nh2 slots=2\nh3 slots=2\n' >three
cat >run.yaml <<'CONFIG'
name: lost
model: {model_type: gpt2, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
data: {train: [{path: "synthetic:60000"}], sequence_length: 128}
train: {steps: 200, global_batch_size: 8, micro_batch_size: 1, reduction: fixed}
optimizer: {lr: 1.0e-3}
checkpoint: {every_steps: 5}
fault: {max_restarts: 10, min_ranks: 4, start_timeout_seconds: 12, stall_timeout_seconds: 8}
launcher: {threads_per_rank: 1}
device: cpu
CONFIG
metrics=lost/metrics.jsonl

begin() { # ARGUMENTS...
    begin_run lost on h1 "$lockstep" run run.yaml --hostfile three --run-dir lost "$@"
}
# until_event WHAT PATTERN: a line of the metrics matches.
until_event() {
    until_true 120 "$1" "${supervisors[lost]}" lost.err grep -qE -- "$2" "$metrics"
}
# Steps of an attempt, and a checkpoint that is progress: restarts count from there.
until_progress() { # ATTEMPT
    until_event "attempt $1 trains and saves" '"event":"commit".*"attempt":'"$1"','
}

for host in h1 h2 h3; do link $host rate 60; done # so that a step takes long enough for what is done to the run
begin -n 6
until_progress 1
lose_host h3
until_event "the loss of a host is told" '"event":"fault".*"attempt":1,.*"scope":"node"'
check "a host whose processes all die is lost as a node, says its launcher" \
    grep -q '"event":"fault".*"code":6,"text":"communication: host h3 with 2 ranks was lost at step [0-9]*: mpirun has lost.*"host":"h3","scope":"node"' $metrics
until_progress 2
check "once is borne: the next attempt uses it again" grep -q '"event":"attempt","attempt":2,.*"ranks":6' $metrics
link h3 down
until_event "the cut link is told" '"event":"fault".*"attempt":2,.*"scope":"node"'
check "a host that is not heard any more is lost as a node too" \
    grep -q '"event":"fault".*"code":6,"text":"communication: host h3 with 2 ranks was lost at step [0-9]*: not heard for [0-9]* s, ranks 4, 5 last seen .*Check the network to h3' $metrics
check "each is told once" test "$(grep -c '"event":"fault"' $metrics)" = 2
until_progress 3
check "twice is too often: the run goes on without it, with fewer ranks" \
    bash -c "grep -q '\"event\":\"attempt\",\"attempt\":3,.*\"ranks\":4' $metrics && grep -q '\"event\":\"host_left_out\",\"attempt\":3,.*host h3 does not answer any more: it gets no rank' $metrics"
check "what is left there is said to be out of reach" grep -q "what earlier attempts left on h3 is not removed: no answer" lost.err
check "its files are still there" bash -c '[ -n "$(ls "$0")" ]' "/proc/$(cat "$hosts/h3")/root/dev/shm"
link h3 up
kill -KILL "$(pids_on h2 lockstep-worker | head -n 1)"
until_event "the loss of a rank is told" '"event":"fault".*"attempt":3,.*"scope":"rank"'
until_progress 4
check "it is not used again though it answers" \
    bash -c "grep -q '\"event\":\"attempt\",\"attempt\":4,.*\"ranks\":4' $metrics && grep -q '\"event\":\"host_left_out\",\"attempt\":4,.*host h3 has lost ranks too often: it gets none any more' $metrics"
until_true 60 "what was left there is waited for" "${supervisors[lost]}" lost.err is_clean h3
check "what was left there is removed while it goes on" is_clean h3
link h2 down
link h3 down
on h1 "$lockstep" run run.yaml -n 2 --run-dir calm >calm.log 2>&1 || not_ok "the undisturbed run ends well" calm.log
ends 6 "host h2 with 2 ranks was lost .* 2 ranks can be placed, 4 are needed \(fault.min_ranks\). .lockstep run --resume. goes on from step [0-9]" \
    "with fewer ranks left than fault.min_ranks the run ends with 6, and says how many there are and are needed" lost
check "having waited for the hosts" grep -q '"event":"waiting_for_hosts".*2 ranks can be placed, 4 are needed .*: waiting up to 12 s for h2, h3 to answer again' $metrics
check "nothing is left on the coordinator's host" is_clean h1
link h2 up
link h3 up
for host in h1 h2 h3; do link $host rate 0; done
begin -n 6 --resume
# Beside it: on one host a rank dies at every start, before it has joined.
cat >broken <<'WRAPPER'
#!/bin/sh
if [ "$(hostname)" = h3 ] && [ "$OMPI_COMM_WORLD_LOCAL_RANK" = 1 ]; then
    until [ -e "/dev/shm/lockstep-$LOCKSTEP_RUN_ID-a$LOCKSTEP_ATTEMPT" ]; do sleep 0.02; done
    kill -KILL $$
fi
exec "$@"
WRAPPER
chmod +x broken
begin_run defect on h1 "$lockstep" run run.yaml --hostfile three --run-dir defect -n 6 --set "launcher.wrapper=[$PWD/broken]" --set train.steps=20
ends 0 "" "with all hosts back it is resumed to its end" lost
ends 0 "" "a host that loses a rank at every start does not end a run" defect
check "three losses are told for it, by rank" test "$(grep -c '"event":"fault".*"host":"h3","scope":"rank"' defect/metrics.jsonl)" = 3
check "then it is left out" bash -c "grep -q '\"event\":\"host_left_out\",\"attempt\":4,.*h3 has lost ranks too often' defect/metrics.jsonl &&
    grep -q '\"event\":\"joined\",\"attempt\":4,.*\"ranks\":4' defect/metrics.jsonl"
check "on six ranks" bash -c "grep '\"event\":\"joined\"' $metrics | tail -n 1 | grep -q '\"ranks\":6'"
for host in h1 h2 h3; do check "nothing is left on $host" is_clean $host; done
check "the weights are those of a run that lost nothing, bit for bit" cmp lost/final/model.safetensors calm/final/model.safetensors
expect 0 "the tokens read again give the digests" "and the ledger holds" "$lockstep" verify lost --deep
