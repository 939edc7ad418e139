#!/usr/bin/env bash
# Losses that spike: the run stops, skips the update, or rolls back and passes over the sequences, as fault.nonfinite says.
source "$(dirname "$0")/lib.sh"

# A sentence again and again, learnt soon, and in its midst a piece of noise as long as three sequences.
python3 - "$work/text.txt" <<'PYTHON'
import random, sys
random.seed(5)
text = "the quick brown fox jumps over the lazy dog and runs away again. " * 1200
noise = "".join(chr(random.randrange(33, 126)) for _ in range(3 * 64))
with open(sys.argv[1], "w") as file:
    file.write(text[: len(text) // 2] + noise + text[len(text) // 2 :])
PYTHON
check "a text with noise in it" "$lockstep" data prepare "$work/text.txt" -o "$work/data"
cat >"$work/spike.yaml" <<CONFIG
model: {model_type: gpt2, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
data: {train: [{path: $work/data/train}], sequence_length: 64}
train: {steps: 560, global_batch_size: 2, micro_batch_size: 1, reduction: fixed}
optimizer: {lr: 3.0e-3}
checkpoint: {every_steps: 20}
fault: {loss_spike_factor: 6}
launcher: {threads_per_rank: 1}
device: cpu
CONFIG
run() { "$lockstep" run "$work/spike.yaml" --run-dir "$work/$1" --set "fault.nonfinite=$1" "${@:2}"; }

expect 7 "the loss of step [0-9]+ is .* median of the steps before it .* a spike" "stop: a spike ends the run, naming step, loss and median" run stop -n 2
expect 0 "steps +560 of 560" "skip: the run goes on to its end" run skip -n 2
skipped() { grep -c '"kind":"step".*"skipped":true' "$1/metrics.jsonl"; }
check "the steps with the noise made no update" test "$(skipped "$work/skip")" -ge 1 -a "$(skipped "$work/skip")" -le 8
expect 0 "updates +[0-9]+ skipped" "verify counts the skipped updates" "$lockstep" verify "$work/skip" --deep
expect 7 "10 updates in a row were passed over" "a run that can only skip ends" run skip -n 1 --run-dir "$work/hopeless" \
    --set optimizer.lr=1000 --set optimizer.weight_decay=1000 --set lr_schedule.type=constant --set train.gradient_clipping=0
expect 0 "steps +560 of 560" "rollback: the run goes on to its end" run rollback -n 2
check "the sequences were put in quarantine, each time by one restart" \
    test "$(grep -c '"event":"quarantine"' "$work/rollback/metrics.jsonl")" -ge 1 -a \
    "$(grep -c '"event":"quarantine"' "$work/rollback/metrics.jsonl")" = "$(grep -c '"event":"attempt"' "$work/rollback/metrics.jsonl")"
check "no step of the end has a spike" \
    python3 - "$work/rollback/metrics.jsonl" <<'PYTHON'
import json, sys
steps = {}
for line in open(sys.argv[1]):
    entry = json.loads(line)
    if entry["kind"] == "step":
        steps[entry["step"]] = entry["loss"]
late = [steps[step] for step in sorted(steps)[300:]]
assert len(steps) == 560 and max(late) < 2.0, (len(steps), max(late))
PYTHON
expect 0 "skipped +sequences [0-9]+ to [0-9]+: step [0-9]+ of attempt [0-9]+ was not finite" "verify --deep names what was passed over, and why" \
    "$lockstep" verify "$work/rollback" --deep
expect 0 "steps +560 of 560" "one rank passes over the same" run rollback -n 1 --run-dir "$work/one"
check "with the same bits" cmp "$work/one/final/model.safetensors" "$work/rollback/final/model.safetensors"
# A checkpoint that is copied without its journal brings what is in quarantine.
mkdir -p "$work/copy/checkpoints"
cp "$work/rollback/config.yaml" "$work/copy/"
cp -r "$work/rollback/checkpoints/step-00000560" "$work/copy/checkpoints/"
quarantined() { tr -d ' \n' <"$1/final/trainer.json" | grep -o '"quarantined":[^"]*]]'; }
before=$(quarantined "$work/rollback")
check "trainer.json lists the sequences in quarantine" test -n "$before"
for run in rollback copy; do
    expect 0 "steps +580 of 580" "$run goes on" run rollback -n 2 --resume --run-dir "$work/$run" --set train.steps=580 --accept train.steps
done
check "without the journal to the same bits" cmp "$work/copy/final/model.safetensors" "$work/rollback/final/model.safetensors"
check "with the same sequences in quarantine" test "$(quarantined "$work/copy")" = "$before"
expect 0 "skipped +sequences [0-9]+ to [0-9]+: the checkpoint that the run began with says so" "which verify tells" "$lockstep" verify "$work/copy" --deep
