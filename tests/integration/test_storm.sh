#!/usr/bin/env bash
# Faults of every kind over one run (tests/storm/storm), and what a checkpoint written beside training holds. LS_TEST_LONG=1: 100 faults.
source "$(dirname "$0")/lib.sh"

# ---- beside training on three ranks, the state of one ----

cat >"$work/beside.yaml" <<'CONFIG'
model: {model_type: gpt2, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
data: {train: [{path: "synthetic:40000"}], sequence_length: 64}
train: {steps: 150, global_batch_size: 8, micro_batch_size: 2, reduction: fixed}
optimizer: {lr: 1.0e-3}
checkpoint: {every_steps: 5, keep: 0}
launcher: {threads_per_rank: 1}
device: cpu
CONFIG
check "a run of one rank" "$lockstep" run "$work/beside.yaml" -n 1 --run-dir "$work/one" --set checkpoint.async=false
for stage in 1 2 3; do
    check "a run of three ranks at stage $stage" "$lockstep" run "$work/beside.yaml" -n 3 --run-dir "$work/stage$stage" --set "zero.stage=$stage"
    check "has the same state in each of 30 checkpoints" tests/storm/same_state "$work/one" "$work/stage$stage"
done

# ---- the storm ----

if [ "${LS_TEST_LONG:-0}" = 1 ]; then faults=100; else faults=8; fi
tests/storm/storm --faults "$faults" --seed "${LS_TEST_SEED:-$RANDOM}" >"$work/storm.log" 2>&1
status=$?
cat "$work/storm.log"
bad=$(grep -c '^not ok' "$work/storm.log")
failures=$((failures + bad))
[ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || not_ok "the storm ended with $status" "$work/storm.log"
