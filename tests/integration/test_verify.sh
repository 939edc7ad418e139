#!/usr/bin/env bash
# `lockstep verify`, `lockstep blame` and the retention of checkpoints, on a run that is stopped, killed and resumed at other rank counts.
source "$(dirname "$0")/lib.sh"
repository=$PWD
# shellcheck disable=SC2086
${CC:-cc} -o "$work/edit_database" tests/integration/edit_database.c $(pkg-config --cflags --libs sqlite3) || exit 1
mkdir "$work/here"
cd "$work/here" || exit 1

for i in $(seq 400); do printf 'Line %d of a text that is here to be read again.\n' "$i"; done >text
"$lockstep" data prepare text -o data --validation 0 >/dev/null || exit 1
settings=(--set 'data={train: [{path: data/train}], validation: [{path: data/train}], sequence_length: 32, document_mask: true, seed: 5}'
    --set evaluation.every_steps=0 --set fault.max_restarts=0)
train() { # RUN STEPS ARGUMENTS...
    local run=$1 steps=$2
    shift 2
    "$lockstep" run "$repository/configs/tiny-gpt2.yaml" --run-dir "$run" "${settings[@]}" --set train.steps="$steps" "$@"
}
told() { grep -c '"kind":"step"' "$1/metrics.jsonl" 2>/dev/null || true; }

# ---- a run with a history ----

train run 400 -n 2 --set checkpoint.every_steps=20 >run.out 2>&1 </dev/null &
supervisor=$!
while [ "$(told run | grep . || echo 0)" -lt 30 ]; do kill -0 $supervisor || exit 1; sleep 0.05; done
expect 4 "is going on" "a run that is going on is not verified" "$lockstep" verify run
rank=$(sed -n 's/.* process \([0-9]*\), attempt .*/\1/p' run/logs/rank-00001.log | tail -n 1)
kill -9 "$rank"
wait $supervisor
check "a rank of it was killed" grep -q "rank 1 .* lost" run.out
expect 0 "^proven " "a run that died is proven as far as it came" "$lockstep" verify run --deep
check "resumed at another rank count it ends" train run 400 -n 3 --resume --set checkpoint.every_steps=20
expect 0 "400 of 400 steps, 3200 sequences; saved to step 400" "its lineage is told" "$lockstep" verify run
check "with the attempts it consists of" grep -qE "steps [0-9]+ to 400 by attempt 2 on 3 ranks" "$work/expect.log"
check "and the checkpoints that agree" grep -q "agrees with 2 checkpoints" "$work/expect.log"
expect 0 "the tokens read again give the digests" "verify --deep proves it" "$lockstep" verify run --deep
# 19892 bytes and the document token are 19893 tokens: 621 samples of 32 and a last target use 19873, 20 are left. 3200 = 5 * 621 + 95.
check "every sample was used as often as 3200 sequences of 621 samples give" \
    grep -q "used      621 of 621 samples: 95 of them 6 times, 526 5 times" "$work/expect.log"
check "the end of the shard is told" grep -q "20 token.* at the end of 1 shard fill none" "$work/expect.log"
if mkdir 'arch%49ve?a#b' && unshare -rm true 2>/dev/null; then
    cat >archived <<'END'
mount --bind "$1" 'arch%49ve?a#b' && mount -o remount,bind,ro 'arch%49ve?a#b' && shift && exec "$@" 'arch%49ve?a#b'
END
    expect 0 "the tokens read again give the digests" "a run that may not be written is proven" unshare -rm bash archived run "$lockstep" verify --deep
    expect 0 "^step 300 " "and its steps are known" unshare -rm bash archived run "$lockstep" blame --step 300
    cp -r run killed
    echo more >killed/journal.db-wal
    expect 4 "journal.db-wal holds what a killed run had not.* copy the run directory" "what is not in its journal yet is not passed over" \
        unshare -rm bash archived killed "$lockstep" verify
else
    skip "a run that may not be written is proven" "user namespaces are not allowed here"
fi
"$lockstep" verify run --deep --json >proof.json
check "the same as JSON" python3 - <<'PYTHON'
import json, os
proof = json.load(open("proof.json"))
assert proof["proven"] is True and proof["deep"] is True and proof["difference"] is None and proof["run_dir"] == os.path.realpath("run"), proof
assert (proof["steps"], proof["total_steps"], proof["first_step"], proof["saved_step"], proof["sequences"]) == (400, 400, 1, 400, 3200), proof
first, second = proof["lineage"]
assert (first["attempt"], first["ranks"], first["first_step"]) == (1, 2, 1) and first["last_step"] % 20 == 0, first
assert (second["attempt"], second["ranks"], second["first_step"], second["last_step"]) == (2, 3, first["last_step"] + 1, 400), second
assert proof["checkpoints"] == 2 and proof["steps_given_up"] > 0 and proof["updates_skipped"] == 0 and proof["quarantine"] == [], proof
source, = proof["sources"]
assert source["path"] == os.path.realpath("data/train") and source["present"] is True, source
assert (source["samples"], source["used"], source["not_reached"], source["uses_least"], source["uses_most"]) == (621, 621, 0, 5, 6), source
assert (source["epochs"], source["begun"], source["in_quarantine"]) == (5, 95, 0), source
PYTHON

# ---- blame ----

expect 0 "their digest is the one in the journal" "blame reads a step's samples" "$lockstep" blame run --step 400
check "eight of them, over three ranks" \
    test "$(grep -oE '^position [0-9]+ rank [0-9]' "$work/expect.log" | awk '{print $4}' | tr -d '\n')" = 00111222
check "with the words at that place" bash -c '
    line=$(grep -m 1 "^position 3192 " "'"$work/expect.log"'")
    first=$(sed "s/.* tokens \([0-9]*\) to.*/\1/" <<<"$line")
    [ "$first" -gt 0 ] || exit 0
    words=$(tail -c +"$first" text | head -c 32 | tr "\n" "~" | sed "s/~/\\\\n/g")
    grep -A 1 "^position 3192 " "'"$work/expect.log"'" | grep -qF "  begins $words"'
"$lockstep" blame run --step 400 --json >step.json
check "the same as JSON" python3 - "$work/expect.log" <<'PYTHON'
import json, re, sys
step = json.load(open("step.json"))
assert (step["step"], step["attempt"], step["ranks"], step["sequences"], step["position"], step["proven"]) == (400, 2, 3, 8, 3192, True), step
lines = open(sys.argv[1]).read().splitlines()
told = [(line, words.removeprefix("  begins ")) for line, words in zip(lines, lines[1:]) if line.startswith("position ")]
assert len(told) == len(step["samples"]) == 8, told
for (line, words), sample in zip(told, step["samples"]):
    numbers = [int(number) for number in re.findall(r"(?<= )\d+", line.replace(sample["shard"], ""))]
    assert numbers == [sample[key] for key in ("position", "rank", "source", "index", "first_token", "last_token", "document_offset", "epoch",
                                               "draw")] and words == sample["begins"], (line, words, sample)
PYTHON
expect 2 "the last one is 400" "a step that has not run is refused" "$lockstep" blame run --step 401
expect 2 "no step is named" "blame needs a step" "$lockstep" blame run

# ---- what is wrong is found ----

spoiled() { rm -rf spoiled && cp -r run spoiled; }
spoiled
check "the journal can be edited" "$work/edit_database" spoiled/journal.db \
    "UPDATE records SET digest='00000000000000000000000000000007' WHERE attempt=2 AND kind='step' AND step=300"
expect 3 "step 300 of attempt 2: the chain in the journal" "a changed digest in the journal is found" "$lockstep" verify spoiled
spoiled
check "a step can be taken out" "$work/edit_database" spoiled/journal.db "DELETE FROM records WHERE kind='step' AND step=350"
expect 3 "step 350 of attempt 2 is not in the journal" "a missing step is found" "$lockstep" verify spoiled
spoiled
check "a commit can be changed" "$work/edit_database" spoiled/journal.db \
    "UPDATE records SET chain='00000000000000000000000000000007' WHERE kind='commit' AND step=400"
expect 3 "step 400 of attempt 2: the chain in the journal's commit" "a commit of another chain is found" "$lockstep" verify spoiled
spoiled
printf 'X' | dd of=spoiled/final/trainer.json bs=1 seek=20 conv=notrunc status=none
expect 0 "step-00000400 is damaged and proves nothing" "a damaged checkpoint is named and passed over" "$lockstep" verify spoiled

# Two bytes of the text trade places: the same shard by name and size.
shard=data/train/train-000.bin
cp $shard kept.bin
# Behind the header of 1024 bytes a token has two: tokens 6000 and 6001.
token() { dd if=kept.bin bs=2 skip=$((512 + $1)) count=1 status=none; }
{ token 6001; token 6000; } | dd of=$shard bs=2 seek=$((512 + 6000)) conv=notrunc status=none
check "the data differ now" bash -c "! cmp -s $shard kept.bin"
expect 0 "^proven " "without reading the tokens nothing is seen of it" "$lockstep" verify run
expect 3 "was not trained on the samples" "verify --deep finds tokens that were swapped" "$lockstep" verify run --deep
step=$(sed -n 's/.*: step \([0-9]*\) of attempt .*/\1/p' "$work/expect.log" | head -n 1)
check "the step it names had the sample of token 6000, number 187" \
    bash -c "'$lockstep' blame run --step ${step:-0} 2>&1 | grep -q ' index 187 '"
for command in "verify run --deep" "blame run --step ${step:-0}"; do
    # shellcheck disable=SC2086
    "$lockstep" $command --json >difference.json 2>difference.err
    check "${command%% *} --json tells the difference" python3 - $? <<'PYTHON'
import json, sys
told, said = json.load(open("difference.json")), open("difference.err").read()
assert sys.argv[1] == "3" and told["proven"] is False and f"lockstep: {told['difference']}\n" in said, (sys.argv, told, said)
PYTHON
done
cp kept.bin $shard
expect 0 "^proven .*read again" "with the data put back it is proven again" "$lockstep" verify run --deep
# Workers that were fed something else: the data were other while they trained, and are as they should be when it is verified.
# Sample i is tokens 32 i to 32 i + 31 (and one more target).
{ token 3210; token 3209; } | dd of=$shard bs=2 seek=$((512 + 3209)) conv=notrunc status=none
train swapped 90 >swapped.out 2>&1 </dev/null
cp kept.bin $shard
dd if=kept.bin of=$shard bs=2 skip=$((512 + 32 * 40)) seek=$((512 + 32 * 41)) count=32 conv=notrunc status=none
train twice 90 >twice.out 2>&1 </dev/null
cp kept.bin $shard
for case in "swapped 100 two tokens of a sample swapped" "twice 41 the tokens of a sample twice"; do
    read -r run index what <<<"$case"
    expect 0 "90 of 90 steps" "the ledger of a run that was fed $what holds in itself" "$lockstep" verify "$run"
    expect 3 "was not trained on the samples" "verify --deep finds that a worker was fed $what" "$lockstep" verify "$run" --deep
    step=$(sed -n 's/.*: step \([0-9]*\) of attempt .*/\1/p' "$work/expect.log" | head -n 1)
    check "and names the step" bash -c "'$lockstep' blame '$run' --step ${step:-0} 2>&1 | grep -q ' index $index '"
done
rm -r data
cat text text >longer
"$lockstep" data prepare longer -o data --validation 0 >/dev/null
expect 3 "data/train has changed since the run began" "another dataset in its place is named" "$lockstep" verify run

# ---- retention ----

names() { (cd "$1/checkpoints" && echo step-*); }
settings=(--set evaluation.every_steps=0)
train kept 20 --set checkpoint.every_steps=5 >kept.out 2>&1 </dev/null
check "the two newest checkpoints are kept" test "$(names kept)" = "step-00000015 step-00000020"
train all 20 --set checkpoint.every_steps=5 --set checkpoint.keep=0 >all.out 2>&1 </dev/null
check "checkpoint.keep: 0 keeps all" test "$(names all)" = "step-00000005 step-00000010 step-00000015 step-00000020"
rm -r all/checkpoints/step-00000020 all/final
train all 20 --set checkpoint.every_steps=5 --set checkpoint.keep=1 --resume >>all.out 2>&1 </dev/null
check "those of earlier attempts count, and the last step stays" test "$(names all)" = "step-00000020"
expect 0 "^proven " "the ledger is proven without the checkpoints that were removed" "$lockstep" verify all --deep
