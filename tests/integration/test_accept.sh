#!/usr/bin/env bash
# Resuming under a changed configuration: what differs is told, what changes the numbers needs --accept, what cannot change is refused,
# and the ledger stays proven over all of it.
source "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
config=$PWD/configs/tiny-gpt2.yaml
cd "$work" || exit 1
run() { "$lockstep" run "$config" --run-dir run --set checkpoint.every_steps=5 "$@"; }

run >run.log 2>&1 </dev/null || not_ok "a run to change" run.log
expect 2 "train.steps differs.*30, it was 20.*--accept train.steps" "more steps need to be accepted" run --resume --set train.steps=30
expect 2 "model.hidden_size differs.*start anew" "another shape is refused" run --resume --set model.hidden_size=64
expect 2 "data.seed differs.*--accept data.seed" "another order of the data needs to be accepted" run --resume --set data.seed=9 --accept optimizer
expect 2 "cannot go on with another model.hidden_size" "what can never change cannot be accepted" run --resume --accept model.hidden_size
expect 2 "such as optimizer.lr" "a wrong name is corrected" run --resume --accept optimizer.learning_rate
expect 2 "gpu.tf32 differs.*--accept gpu.tf32" "products of other factors need to be accepted" run --resume --set gpu.tf32=true
expect 0 "nothing is left to do" "the run is as it was" run --resume
expect 0 "train.steps: 30, it was 20" "accepted, it goes on, and says with what" \
    run --resume -n 2 --set train.steps=30 --set checkpoint.every_steps=10 --accept train.steps
check "what is harmless is told too" grep -q "checkpoint.every_steps: 10, it was 5" expect.log
expect 0 "nothing is left to do" "resumed the same way it is complete, whether accepted again or not" \
    run --resume --set train.steps=30 --set checkpoint.every_steps=10
expect 0 "complete: step 30 is saved, train.steps is 3: nothing is left" "a run that is beyond its new end says so" \
    run --resume --set train.steps=3 --accept train.steps
expect 2 "train.steps differs.*20, it was 30" "the old configuration is now the one that differs" run --resume
expect 0 "steps 21 to 30 by attempt 2" "a section accepts all its keys, another batch among them" \
    bash -c "'$lockstep' run '$config' --run-dir run --resume --set train.steps=40 --set train.global_batch_size=6 --set optimizer.lr=1.0e-4 \
        --accept train --accept optimizer && '$lockstep' verify run --deep"
check "verify names what was changed, and from where on" grep -q "changed     from attempt 3 on: train.steps: 30 -> 40.*train.global_batch_size: 8 -> 6" expect.log
rate=$(sed -n 's/.*"kind":"step","step":31,.*"lr":\([^,]*\),.*/\1/p' run/metrics.jsonl)
check "the new learning rate is used" awk "BEGIN {exit !($rate > 0 && $rate <= 1.0e-4)}"

# By epochs: three steps of 8, then steps of 5 until every sample was used once.
epochs=(--set train.steps=null --set train.epochs=1 --set lr_schedule.warmup_steps=0 --set evaluation.every_steps=0
    --set 'data.train=[{path: "synthetic:2000"}]' --set checkpoint.every_steps=3 --set checkpoint.keep=0)
"$lockstep" run "$config" --run-dir epochs "${epochs[@]}" >epochs.log 2>&1 </dev/null || not_ok "a run by epochs" epochs.log
for folder in epochs/checkpoints/step-*; do [ "$folder" = epochs/checkpoints/step-00000003 ] || rm -r "$folder"; done
"$lockstep" run "$config" --run-dir epochs --resume "${epochs[@]}" --set train.global_batch_size=5 --accept train.global_batch_size \
    >epochs.log 2>&1 </dev/null || not_ok "a run by epochs goes on with another batch" epochs.log
expect 0 "used      62 of 62 samples, each once" "a run by epochs uses every sample once, with another batch from step 4 on" \
    "$lockstep" verify epochs --deep
check "the steps of both batches are its lineage" grep -q "steps 4 to 11 by attempt 2" expect.log
