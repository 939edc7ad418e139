#!/usr/bin/env bash
# Resuming on other data: a run goes on with a new generation of the data, with epochs of its own, at other rank counts, through a restart,
# back to a checkpoint of before and by epochs; verify and blame judge each step by its own generation. A checkpoint that is copied without its
# journal goes on.
source "$(dirname "$0")/lib.sh"
repository=$PWD
# shellcheck disable=SC2086
${CC:-cc} -o "$work/edit_database" tests/integration/edit_database.c $(pkg-config --cflags --libs sqlite3) || exit 1
export OMP_NUM_THREADS=1
mkdir "$work/here"
cd "$work/here" || exit 1

# Two datasets of the same size and other words, one that is longer.
for name in first other; do
    for i in $(seq 200); do printf 'Line %3d of the %s text, to be read.\n' "$i" "$name"; done >$name.text
done
cat first.text other.text >longer.text
for name in first other longer; do "$lockstep" data prepare $name.text -o $name --validation 0 >/dev/null || exit 1; done
# 200 lines of 40 bytes and a document token are 8001 tokens: 250 samples of 32 and a target.
on() { echo "data.train=[{path: $1/train}]"; }
go() { # RUN ARGUMENTS...
    local run=$1
    shift
    "$lockstep" run "$repository/configs/tiny-gpt2.yaml" --run-dir "$run" --set checkpoint.every_steps=5 --set checkpoint.keep=0 \
        --set evaluation.every_steps=0 --set train.reduction=fixed --set train.micro_batch_size=2 "$@"
}
value() { sed -n "s/^ *\"$2\": \([^,]*\),*$/\1/p" "$1/trainer.json"; }
# The last words of the run; the checkpoints behind a step are taken away.
end() { sed -n 's/.*"event":"end".*"text":"\([^"]*\)".*/\1/p' "$1/metrics.jsonl" | tail -n 1; }
cut_behind() { # RUN STEP
    rm -f "$1/final"
    for folder in "$1"/checkpoints/step-*; do [ $((10#${folder##*-})) -le "$2" ] || rm -r "$folder"; done
}

# ---- changed data are told and need to be accepted ----

go run --set "$(on first)" -n 2 >begin.out 2>&1 </dev/null || not_ok "a run on the first data" begin.out
more=(--resume --set train.steps=40 --accept train.steps)
expect 3 "data.train are not those .*other/train \(digest .*it was .*first/train.*--accept data.train" "other data in place of the first are refused with both named" \
    go run "${more[@]}" --set "$(on other)"
expect 2 "data.seed differs.*new generation of the data.*--accept data.seed" "so is another order" go run "${more[@]}" --set "$(on first)" --set data.seed=9
expect 2 "data.sequence_length differs|model.max_position_embeddings differs" "and another length" go run "${more[@]}" --set "$(on first)" --set data.sequence_length=16
cp run/config.yaml refused.yaml
check "what was refused left the configuration as it was" grep -q "steps: 20" refused.yaml
expect 0 "generation 2 of the data begins behind step 20, with epochs of its own; before it was generation 1, at position 160" \
    "accepted, a new generation begins, and a line says so" go run "${more[@]}" -n 3 --set "$(on other)" --set data.seed=9 --accept data
check "with the change in words" grep -q "data.seed: 9, it was 0 (changes what is trained on from here on: a new generation of the data; accepted)" "$work/expect.log"
check "and both datasets" grep -q "Changed: data.seed: 0 -> 9; data.train: .*first/train (digest .*, 250 samples) -> .*other/train (digest .*, 250 samples)" "$work/expect.log"
check "metrics.jsonl has the event" grep -q '"event":"data_generation".*"data_generation":2,"before":1,"step":20,"position":0,"begins":true' run/metrics.jsonl
check "samples go on, the epoch begins" grep -q '"kind":"step","step":21,"attempt":2,"epoch":0.032,"samples":168,"tokens":5376,' run/metrics.jsonl
check "the checkpoint says where it is" test "$(value run/final position) $(value run/final samples) $(value run/final tokens) $(value run/final data_generation) $(value run/final data_generation_step)" = "160 320 10240 2 20"

# The same on one rank, and once more from the midst of the second generation.
go single --set "$(on first)" -n 1 >single.out 2>&1 </dev/null
go single "${more[@]}" -n 1 --set "$(on other)" --set data.seed=9 --accept data >>single.out 2>&1 </dev/null
check "one rank has the same bits" cmp single/final/model.safetensors run/final/model.safetensors
cut_behind single 30
go single "${more[@]}" -n 2 --set "$(on other)" --set data.seed=9 >>single.out 2>&1 </dev/null
check "and two from an older checkpoint of the generation" cmp single/final/model.safetensors run/final/model.safetensors

# ---- the ledger over both ----

expect 0 "^proven .*read again" "both generations are proven" "$lockstep" verify run --deep
check "each with its steps" test "$(grep -A1 '^generation' "$work/expect.log" | grep -oE 'steps [0-9]+ to [0-9]+, positions [0-9]+ to [0-9]+|[a-z]+/train$' | tr '\n' ' ')" = \
    "steps 1 to 20, positions 0 to 159 first/train steps 21 to 40, positions 0 to 159 other/train "
check "and in each no sample twice" test "$(grep -c 'used      160 of 250 samples, each once' "$work/expect.log")" = 2
expect 0 "their digest is the one in the journal" "blame shows a step of the first" "$lockstep" blame run --step 20
check "with its words" grep -q "the first text" "$work/expect.log"
expect 0 "from position 0 of generation 2 of the data" "and one of the second" "$lockstep" blame run --step 21
check "with its own" grep -q "the other text" "$work/expect.log"
cp -r run spoiled
check "the journal can be edited" "$work/edit_database" spoiled/journal.db "UPDATE attempts SET data_generation=1 WHERE attempt=2"
expect 3 "step 21 of attempt 2: its position is 0, it should be 160" "a generation that is not begun is found" "$lockstep" verify spoiled

# ---- the first data again, through a restart, at another rank count ----

before=$(steps_told run)
begin_run run go run --resume -n 2 --set "$(on first)" --set data.seed=9 --set train.steps=50000 --set checkpoint.every_steps=0 \
    --accept train.steps --accept data --set fault.max_restarts=1
until_steps run $((before + 20))
kill -9 "$(worker_pid run 1)"
until_events run attempt 1
until_steps run $(($(steps_told run) + 20))
check "a run that restarts is stopped" "$lockstep" stop run
ends 130 "rank 1 .* lost|stopped, saved" "it ends where it was stopped" run
check "its restart from a checkpoint of before the change let the data begin again" \
    grep -q '"event":"attempt","attempt":4,.*"step":40,.*"begins_data_generation":true' run/metrics.jsonl
check "and the console said so" grep -q "attempt 4: resuming at step 40 of .*its data begin again: the checkpoint is from before they changed" run.out
expect 0 "steps 41 to [0-9]+ by attempt 4 on 2 ranks" "the first data by another seed are a third generation" "$lockstep" verify run --deep
check "from the beginning of their order" grep -qE "generation  3 of the data: steps 41 to [0-9]+, positions 0 to " "$work/expect.log"
check "as their checkpoint says" test "$(value "run/checkpoints/$(cat run/latest)" data_generation) $(value "run/checkpoints/$(cat run/latest)" data_generation_step)" = "3 40"

# ---- back to a checkpoint of before ----

cut_behind run 20
expect 0 "generation 1 of the data goes on behind step 20, at position 160, as the checkpoint was left" \
    "set back to the data of the checkpoint it starts from, the run goes on there" \
    go run --resume -n 1 --set "$(on first)" --set train.steps=40 --accept train.steps --accept data
expect 0 "lineage     40 of 40 steps, 320 sequences" "the lineage has left the others" "$lockstep" verify run --deep
check "and used every sample of 250 and 70 of them again" grep -q "used      250 of 250 samples: 70 of them 2 times, 180 1 times" "$work/expect.log"

# ---- other weights, and shorter sequences ----

cp -r run mixed
expect 2 "model.max_position_embeddings differs" "shorter sequences would shorten a GPT-2's positions" \
    go mixed --resume --set "$(on first)" --set train.steps=50 --set data.sequence_length=16 --accept train.steps --accept data
mixture='data.train=[{path: first/train, weight: 1}, {path: longer/train, weight: 3}]'
expect 0 "generation 4 of the data begins behind step 40.*data.sequence_length: 32 -> 16" "unless it keeps them" go mixed --resume -n 3 --set "$mixture" \
    --set train.steps=50 --set data.sequence_length=16 --set model.max_position_embeddings=32 --accept train.steps --accept data
check "with its weights in words" grep -qF "data.train: [{weight: 1}, {weight: 3}], it was [{}] (changes what is trained on" "$work/expect.log"
check "sequences and tokens are counted on" test "$(value mixed/final samples) $(value mixed/final tokens)" = "400 $((320 * 32 + 80 * 16))"
expect 0 "^proven .*read again" "the mixture is proven" "$lockstep" verify mixed --deep
check "in its weights" test "$(grep -oE 'used      [0-9]+ of [0-9]+ samples, each once' "$work/expect.log" | awk '{print $2}' | tr '\n' ' ')" = "20 60 "

# ---- other validation data ----

validated=(--set "$(on first)" --set evaluation.every_steps=5 --set evaluation.batches=1)
go checked "${validated[@]}" --set 'data.validation=[{path: first/train}]' >checked.out 2>&1 </dev/null || not_ok "a run that is validated" checked.out
expect 3 "data.validation are not those .*--accept data.validation" "other validation data are refused" \
    go checked "${more[@]}" "${validated[@]}" --set 'data.validation=[{path: other/train}]'
expect 0 "data.validation are others behind step 20: losses before and after do not compare" "accepted, they begin no generation" \
    go checked "${more[@]}" "${validated[@]}" --set 'data.validation=[{path: other/train}]' --accept data.validation
check "the order goes on" test "$(value checked/final position) $(value checked/final data_generation)" = "320 1"
expect 0 "changed     from attempt 2 on: train.steps: 20 -> 40; data.validation: other datasets" "and verify tells" "$lockstep" verify checked --deep

# ---- data that are gone ----

cp -r run gone
go gone --resume --set "$(on other)" --set train.steps=45 --accept train.steps --accept data >gone.out 2>&1 </dev/null || not_ok "a run to lose its first data" gone.out
mv first moved
expect 0 "first/train, in generation 1 of the data" "without the first data the numbers still hold" "$lockstep" verify gone
check "and that they are gone is told" grep -q "its files are not there any more, or others: counted by the journal" "$work/expect.log"
expect 3 "the tokens of steps 1 to 40 cannot be read again: the datasets of generation 1 of the data are gone or others" \
    "--deep says which steps it cannot prove" "$lockstep" verify gone --deep
expect 3 "the samples of step 40 cannot be shown" "nor can blame" "$lockstep" blame gone --step 40
expect 0 "their digest is the one in the journal" "the others are as they were" "$lockstep" blame gone --step 41
mv moved first

# ---- by epochs, and from a checkpoint of before the change ----

# 250 samples by 8 are 31 steps and one of 2; the longer text has 16001 tokens: 500 samples, 62 steps and one of 4.
epochs=(--set train.steps=null --set train.epochs=1)
go epochs "${epochs[@]}" -n 2 --set "$(on first)" >epochs.out 2>&1 </dev/null || not_ok "a run by epochs" epochs.out
expect 0 "generation 2 of the data begins behind step 32" "a run by epochs that is complete goes on with other data" \
    go epochs --resume -n 3 "${epochs[@]}" --set "$(on longer)" --accept data.train
check "for as many epochs of theirs" test "$(end epochs)" = "done: 95 steps, 750 sequences"
expect 0 "^proven .*read again" "each of both is proven" "$lockstep" verify epochs --deep
check "and used in whole" test "$(grep -oE 'used      [0-9]+ of [0-9]+ samples, each once' "$work/expect.log" | awk '{print $2 $4}' | tr '\n' ' ')" = "250250 500500 "
cut_behind epochs 20
expect 0 "generation 2 of the data begins again behind step 20" "from a checkpoint of before it begins again there" \
    go epochs --resume -n 1 "${epochs[@]}" --set "$(on longer)"
check "and ends where its epoch does" test "$(end epochs)" = "done: 83 steps, 660 sequences"
expect 0 "^proven .*read again" "that lineage is proven too" "$lockstep" verify epochs --deep

# ---- a checkpoint that is copied without a journal ----

mkdir -p copy/checkpoints
cp epochs/config.yaml copy/
cp -r epochs/checkpoints/step-00000030 copy/checkpoints/
expect 2 "train.epochs differs|data.train" "the configuration is compared all the same" go copy --resume --set train.steps=null --set train.epochs=2 --set "$(on longer)"
expect 3 "was trained on other data, or in another order, .*does not say which" "and so are the data" go copy --resume "${epochs[@]}" --set "$(on other)"
expect 0 "from step 30, attempt 1" "a checkpoint goes on without its journal" go copy --resume -n 2 "${epochs[@]}" --set "$(on longer)"
check "to the end that it would have had" test "$(end copy)" = "done: 83 steps, 660 sequences"
expect 0 "not known   steps 1 to 30: they came with a checkpoint from elsewhere" "verify says what it cannot prove, and proves the rest" "$lockstep" verify copy --deep
expect 2 "step 30 is not known here" "blame has nothing of before" "$lockstep" blame copy --step 30
