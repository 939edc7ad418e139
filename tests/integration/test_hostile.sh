#!/usr/bin/env bash
# A run under hostile connections goes on as if there were none: the same losses, no rank lost, no grant late, and the coordinator's
# memory and descriptors stay bounded. 1,000 connections to a coordinator that may have 300 descriptors; with LS_TEST_LONG=1 10,000 to
# one that may have what this host allows.
source "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
connections=$([ "${LS_TEST_LONG:-0}" = 1 ] && echo 10000 || echo 1000)
hostile=$PWD/build/tests/integration/hostile
[ -x "$hostile" ] || { echo "not ok - build/tests/integration/hostile is missing (make tests)"; exit 1; }
config=$PWD/configs/tiny-gpt2.yaml
cd "$work" || exit 1

# Steps of some 20 ms on two ranks, for as long as the attack takes.
train() { # RUN-DIR STEPS
    "$lockstep" run "$config" -n 2 --run-dir "$1" --set "train.steps=$2" --set lr_schedule.type=constant --set train.reduction=fixed \
        --set model.hidden_size=96 --set data.sequence_length=64 --set model.max_position_embeddings=64 \
        --set 'data.train=[{path: "synthetic:900000"}]' --set checkpoint.every_steps=40 --set evaluation.every_steps=0 --set lr_schedule.warmup_steps=0
}
descriptors() { # of all tables that a process's threads have
    local task count=0 most=0
    for task in "/proc/$1/task"/*; do
        count=$(find "$task/fd" -maxdepth 1 -mindepth 1 2>/dev/null | wc -l)
        [ "$count" -gt "$most" ] && most=$count
    done
    echo "$most"
}
losses() { sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([^,]*\),.*/\1 \2/p' "$1/metrics.jsonl"; }

(
    if [ "$connections" = 1000 ]; then ulimit -n 300; fi
    train attacked 1000000
) >attacked.log 2>&1 </dev/null &
run=$!
for _ in $(seq 300); do [ "$(losses attacked 2>/dev/null | wc -l)" -ge 5 ] && break; sleep 0.1; done
coordinator=$(awk '$1 == "pid" {print $2}' attacked/lock)
endpoint=$(grep -oE 'tcp://[0-9.:]+' attacked/lock | head -1)
before=$(descriptors "$coordinator")
begin=$(losses attacked | wc -l)
check "the attack is carried out" "$hostile" "$endpoint" attacked/keys/worker.key "$connections" 42
grep -h "half-open" check.log | sed 's/^/# /'
end=$(losses attacked | wc -l)
peak=$(awk '/^VmHWM/ {print $2}' "/proc/$coordinator/status")
if [ "$end" -gt "$begin" ]; then ok "training goes on meanwhile"; else not_ok "training goes on meanwhile ($begin to $end steps)" attacked.log; fi
echo "# $((end - begin)) steps meanwhile; the coordinator's peak is $peak KiB, its descriptors were $before"
if [ "${peak:-9999999}" -le $((512 * 1024)) ]; then ok "the coordinator stays below 512 MB"; else not_ok "the coordinator took $peak KiB"; fi
for _ in $(seq 60); do
    after=$(descriptors "$coordinator")
    [ "$after" -le $((before + 4)) ] && break
    sleep 1
done
if [ "$after" -le $((before + 4)) ]; then ok "its descriptors are back within a minute"; else not_ok "$after descriptors, $before before"; fi
"$lockstep" stop attacked >stop.log 2>&1
wait $run
status=$?
if [ $status -eq 130 ]; then ok "the run can be stopped as ever"; else not_ok "the run can be stopped as ever (exit $status)" attacked.log; fi
steps=$(losses attacked | wc -l)
if [ "$(grep -c '"event":"commit"' attacked/metrics.jsonl)" -ge 1 ]; then ok "checkpoints were committed"; else not_ok "checkpoints were committed" attacked.log; fi
check "no rank was declared lost and nothing was started again" bash -c "! grep -E '\"event\":\"(fault|loss|restart)\"' attacked/metrics.jsonl"
check "no grant was late" bash -c "! grep -h 'granted late' attacked/logs/*"
check "failed handshakes were counted, in a line a minute" bash -c "[ \$(grep -hc 'failed its handshake' attacked/console.log attacked.log | sort -n | tail -1) -ge 1 ]"
train quiet "$steps" >quiet.log 2>&1 </dev/null
losses attacked >attacked.losses
losses quiet >quiet.losses
check "all $steps losses have the bits of a run that nobody disturbed" cmp attacked.losses quiet.losses
