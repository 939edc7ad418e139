#!/usr/bin/env bash
# Checkpoints beside training, from outside: what is in them, when they come, which ones stay, and that none is lost to a crash at any
# moment. LS_TEST_LONG=1: more crashes.
source "$(dirname "$0")/lib.sh"
source_folder=$PWD/tests/integration
say=$PWD/build/tests/integration/say
[ -x "$say" ] || { echo "not ok - build/tests/integration/say is missing (make tests)"; exit 1; }
mkdir "$work/bin" "$work/here"
ln -s "$lockstep" "$work/bin/lockstep"
export PATH=$work/bin:$PATH
cd "$work/here" || exit 1

# 1.6 million weights, 26 MB of checkpoint, and a step of few tokens: a save lasts many steps.
cat >run.yaml <<'Y'
name: saves
model: {model_type: gpt2, hidden_size: 256, num_hidden_layers: 2, num_attention_heads: 4}
data: {train: [{path: "synthetic:20000"}], validation: [{path: "synthetic:500"}], sequence_length: 8}
train: {steps: 24, global_batch_size: 4, micro_batch_size: 1, reduction: fixed}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
device: cpu
Y
run() { # RUN ARGUMENTS...
    local name=$1
    shift
    lockstep run run.yaml --run-dir "$name" "$@" >>"$name.out" 2>>"$name.err" </dev/null
}
names() { ls "$1/checkpoints"; }
weights() { sha256sum <"$1/final/model.safetensors"; }

# ---- what is saved ----

check "a run without saves on the way" run plain -n 2
undisturbed=$(weights plain)
check "a run that saves beside its steps" run beside -n 2 --set zero.stage=3 --set checkpoint.every_steps=6 --set checkpoint.keep=0
check "a run that waits for its saves" run waiting -n 2 --set zero.stage=3 --set checkpoint.every_steps=6 --set checkpoint.keep=0 \
    --set checkpoint.async=false
check "they end with the same weights" bash -c "[ '$(weights plain)' = '$(weights beside)' ] && [ '$(weights plain)' = '$(weights waiting)' ]"
check "both have saved every sixth step" bash -c "[ '$(names beside | tr '\n' ' ')' = 'step-00000006 step-00000012 step-00000018 step-00000024 ' ] &&
    [ '$(names beside)' = '$(names waiting)' ]"
check "with the same bytes in every file" diff -rq beside/checkpoints waiting/checkpoints
check "each commit tells bytes and seconds" bash -c "[ $(grep -cE '"event":"commit",.*"seconds":[0-9.e-]+,"bytes":2[0-9]{7}' beside/metrics.jsonl) = 4 ]"
check "the table at the end tells what training waited and advises an interval" bash -c \
    "grep -qE 'checkpoints +4 saved, [0-9.]+ s to write one, training waited [0-9.]+ s' beside.out && grep -qE 'best interval +[0-9:]+ for a failure every' beside.out"

check "plan tells a checkpoint's bytes and advises an interval too" bash -c "lockstep plan run.yaml -n 2 >plan.out &&
    grep -A 3 '^a checkpoint ' plan.out | grep -qE 'bytes +27,506,688' && grep -qE 'best interval +[0-9]+ s, for a failure every 24000.0 hours' plan.out"

# ---- when ----

begin_run clock lockstep run run.yaml --run-dir clock -n 2 --set train.steps=1000000 --set checkpoint.every_seconds=1 --set checkpoint.keep=0
until_events clock commit 3
kill -INT "${supervisors[clock]}"
ends 130 "saved at step" "a run that saves by the clock" clock
seconds=$(sed -n 's/.*"wall_seconds":\([0-9]*\).*/\1/p' clock/metrics.jsonl | tail -n 1)
check "has saved about once a second, and the last step" bash -c \
    "[ $(events clock commit) -ge 4 ] && [ $(events clock commit) -le $((seconds + 2)) ]"
check "every one of them is whole" lockstep verify clock

# ---- which ones stay ----

check "a run that keeps by step and by loss" run kept -n 2 --set train.steps=40 --set checkpoint.every_steps=4 --set evaluation.every_steps=4 \
    --set checkpoint.keep=1 --set checkpoint.keep_every=16 --set checkpoint.keep_best=2
best=$(sed -n 's/.*"kind":"validation","step":\([0-9]*\),"loss":\([0-9.e+-]*\).*/\2 \1/p' kept/metrics.jsonl | sort -g | head -n 2 | cut -d ' ' -f 2)
expected=$(printf 'step-%08d\n' 16 32 40 $best | sort -u)
check "has kept the last one, multiples of 16 and the two best" test "$(names kept)" = "$expected"
check "best links to the lowest validation loss" test "$(readlink kept/best)" = "checkpoints/step-$(printf %08d "$(head -n 1 <<<"$best")")"
expect 2 "no multiple of evaluation.every_steps" "keeping by a loss that most would not have is refused" \
    lockstep run run.yaml --run-dir none --set evaluation.every_steps=4 --set checkpoint.every_steps=6 --set checkpoint.keep_best=1

# ---- a coordinator that is killed in a commit ----

# Built without the name of the checkpoint, or with it and nothing else: `latest`, `final` and `best` come behind it.
${CC:-cc} -O1 -Wall -Wextra -Werror -shared -fPIC -I "$source_folder/../.." -o hold.so "$source_folder/hold.c" -ldl || exit 1
kill_coordinator() { # RUN
    kill -9 "$(sed -n 's/^pid //p' "$1/lock")"
    until_events "$1" coordinator_restarted 1
    rm hold
}
held() { env LD_PRELOAD="$work/here/hold.so" "$1=$work/here/hold" "${@:2}"; }
touch hold
begin_run before held HOLD_BEFORE lockstep run run.yaml --run-dir before -n 1 --set checkpoint.every_steps=4 --set checkpoint.keep=0 \
    --set evaluation.every_steps=4 --set checkpoint.keep_best=1
validated_at() { grep -q "\"kind\":\"validation\",\"step\":$2," "$1/metrics.jsonl"; } # RUN STEP
until_true 120 "the run goes on beside its first save" "${supervisors[before]}" before.err validated_at before 8
kill_coordinator before
ends 0 "" "a run whose coordinator is killed before the commit that it is at" before
check "saves what was validated then with its loss, which is not the newest one" grep -q validation_loss before/checkpoints/step-00000004/trainer.json

touch hold
begin_run behind held HOLD_AFTER lockstep run run.yaml --run-dir behind -n 1 --set train.steps=4 --set checkpoint.every_steps=4 \
    --set evaluation.every_steps=4 --set checkpoint.keep_best=1
until_true 120 "the last checkpoint is there" "${supervisors[behind]}" behind.err test -e behind/checkpoints/step-00000004
# Those before it are pruned behind the commit too.
leave_older() { local step && for step in 1 2; do rm -rf behind/checkpoints/step-0000000$step && cp -r behind/checkpoints/step-0000000{4,$step}; done; }
leave_older
kill_coordinator behind
ends 0 "" "a run whose coordinator is killed behind its last commit" behind
check "has latest, final and best all the same" bash -c \
    "[ \"\$(cat behind/latest)\" = step-00000004 ] && [ -e behind/final/manifest.json ] && [ -e behind/best/manifest.json ]"
check "and no more checkpoints than checkpoint.keep" test "$(names behind | tr '\n' ' ')" = "step-00000002 step-00000004 "
rm -f behind/latest behind/final behind/best
leave_older
expect 0 "nothing is left to do" "--resume of a complete run" lockstep run run.yaml --run-dir behind -n 1 --resume --set train.steps=4 \
    --set checkpoint.every_steps=4 --set evaluation.every_steps=4 --set checkpoint.keep_best=1
check "makes them where they are missing" bash -c \
    "[ \"\$(cat behind/latest)\" = step-00000004 ] && [ -e behind/final/manifest.json ] && [ -e behind/best/manifest.json ]"
check "and prunes what was left" test "$(names behind | tr '\n' ' ')" = "step-00000002 step-00000004 "
# shellcheck disable=SC2046
${CC:-cc} -o edit_database "$source_folder/edit_database.c" $(pkg-config --cflags --libs sqlite3) || exit 1
check "the end can be taken out of the journal, as if everything had been killed before it" \
    ./edit_database behind/journal.db "DELETE FROM records WHERE kind='end'"
for again in 1 2; do
    expect 0 "nothing is left to do" "--resume finds such a run complete, time $again" lockstep run run.yaml --run-dir behind -n 1 --resume \
        --set train.steps=4 --set checkpoint.every_steps=4 --set evaluation.every_steps=4 --set checkpoint.keep_best=1
    expect 1 "^ended +code 0 \(done\): complete: step 4 of 4 is saved" "and status says so from then on" lockstep status behind
done
check "its ledger is whole" lockstep verify behind

# ---- a supervisor that is killed before it says which launcher it has started ----

is_locked() { ! flock --nonblock "$1/lock" true; } # RUN
is_free() { ! is_locked "$1"; }
remain() { # RUN: processes of it
    local id
    id=$(sed -n 's/.*LOCKSTEP_RUN_ID=\([0-9a-f]*\).*/\1/p' "$1/logs/launcher.log")
    [ -n "$id" ] && grep -qsz "^LOCKSTEP_RUN_ID=$id\$" /proc/[0-9]*/environ
}
mkdir never && printf '#!/bin/sh\nexec sleep 1000\n' >never/mpirun && chmod +x never/mpirun
touch hold
PATH=$work/here/never:$PATH begin_run orphan held HOLD_STARTED lockstep run run.yaml --run-dir orphan -n 1
until_true 120 "a launcher is started" "${supervisors[orphan]}" orphan.err remain orphan
coordinator=$(sed -n 's/^pid //p' orphan/lock)
kill -9 "$(ps -o ppid= -p "$coordinator")"
rm -f hold hold.held
until_true 120 "its coordinator ends" "$coordinator" orphan.err is_free orphan
if remain orphan; then not_ok "and leaves nothing of the launcher"; else ok "and leaves nothing of the launcher"; fi
end_watched "${supervisors[orphan]}"

# ---- what is asked of a run that has just ended ----

touch hold
begin_run over held HOLD_ENDED lockstep run run.yaml --run-dir over -n 1 --set train.steps=4
until_true 120 "a coordinator stands still at its end" "${supervisors[over]}" over.err test -e hold.held
lockstep stop over >stop.out 2>&1 &
stopping=$!
sleep 0.5
rm hold
status=0
wait $stopping || status=$?
check "a stop that nobody takes any more says so once the run has ended" test "$status" = 1
check "as one does that is asked behind the end" grep -q "nothing is running" stop.out
ends 0 "" "and the run ends as it would have" over

# ---- what comes from elsewhere, or too late ----

begin_run late held HOLD_REJECTED lockstep run run.yaml --run-dir late -n 1 --set train.steps=1000000 --set checkpoint.every_steps=4 \
    --set fault.stall_timeout_seconds=600
until_events late commit 2
stopped=$(worker_pid late 0) endpoint=$(sed -n 's/^endpoint //p' late/lock)
kill -STOP "$stopped"
sleep 0.5
check "a report of a step that no rank has sent is received" "$say" "$endpoint" late/keys/worker.key 7 step
lockstep status late >status.out
check "and changes nothing that status shows" bash -c "grep -q '^loss ' status.out && ! grep -q 777 status.out"
printf x >>"late/checkpoints/$(cat late/latest)/model.safetensors"
touch hold
kill -9 "$stopped"
prepares() { lockstep status "$1" 2>&1 | cat >prepares.out && grep -q "preparing" prepares.out; } # RUN
until_true 120 "a start is looked for" "${supervisors[late]}" late.err prepares late
"$say" "$endpoint" late/keys/worker.key 0 open >said.out
check "no worker is sent into an attempt that is over" bash -c "! grep -q setup said.out"
rm hold
until_events late recovered 1
lockstep stop late >/dev/null
ends 130 "" "the run goes on and is stopped" late

# The checkpoint that it would start from is damaged: the next coordinator stands still before it listens.
printf x >>"late/checkpoints/$(cat late/latest)/model.safetensors"
touch hold
begin_run late held HOLD_REJECTED lockstep run run.yaml --run-dir late -n 1 --set train.steps=1000000 --set checkpoint.every_steps=4 \
    --set fault.stall_timeout_seconds=600 --resume
until_true 120 "a run that goes on starts" "${supervisors[late]}" late.err is_locked late
lockstep stop late >stop.out 2>&1 &
stopping=$!
sleep 0.5
rm hold
check "a stop that is asked while a run starts is answered once it listens" wait $stopping
ends 130 "" "and the run ends so" late

# ---- going on under another configuration ----

expect 2 "^lockstep: train.steps differs .*\(30, it was 24\).*--accept train.steps" "a key that changes the numbers is refused by name" \
    lockstep run run.yaml --run-dir plain -n 2 --resume --set optimizer.lr=2.0e-3 --set train.steps=30
expect 2 "^lockstep: optimizer.lr differs .*\(0.002, it was 0.001\).*--accept optimizer.lr" "and so is the next one" \
    lockstep run run.yaml --run-dir plain -n 2 --resume --set optimizer.lr=2.0e-3 --set train.steps=30 --accept train.steps
expect 2 "train.seed differs .*start anew" "one that checkpoints rest on is refused" \
    lockstep run run.yaml --run-dir plain -n 2 --resume --set train.seed=4 --set train.steps=30 --accept train.steps
expect 2 "cannot go on with another train.seed" "and cannot be accepted" lockstep run run.yaml --run-dir plain --resume --accept train.seed
expect 0 "optimizer.lr: 0.002, it was 0.001 \(changes the numbers" "accepted by name it goes on, and each change is told" \
    lockstep run run.yaml --run-dir plain -n 3 --resume --set optimizer.lr=2.0e-3 --set train.steps=30 --set checkpoint.every_steps=5 \
    --accept optimizer.lr --accept train.steps
check "with its effect" grep -q "checkpoint.every_steps: 5, it was 0 (changes no result)" "$work/expect.log"
check "to the new end" grep -qE "steps +30 of 30" "$work/expect.log"
expect 0 "steps 25 to 30 by attempt 2" "the ledger proves both parts" lockstep verify plain --deep

# ---- lockstep checkpoint ----

begin_run asked lockstep run run.yaml --run-dir asked -n 2 --set train.steps=1000000
until_steps asked 1
expect 0 "^saved: step [0-9]+" "lockstep checkpoint saves while steps go on" lockstep checkpoint asked
step=$(sed -n 's/^saved: step //p' "$work/expect.log")
check "what it says was saved is there" test -f "asked/checkpoints/$(printf 'step-%08d' "$step")/manifest.json"
expect 0 "stopping" "a stop saves too" lockstep stop asked
ends 130 "" "and the run ends with 130" asked
check "what is left is whole" lockstep verify asked

# ---- a disk that fills up ----

if mkdir small && mount -t tmpfs -o size=45m none small 2>/dev/null; then
    expect 4 "needs [0-9]+ bytes, the file system has [0-9]+ free" "a disk that is full ends the run with 4 and both numbers" \
        lockstep run run.yaml --run-dir small/full -n 2 --set checkpoint.every_steps=4 --set checkpoint.keep=0 --set fault.max_restarts=0
    check "the checkpoint before is good" lockstep verify small/full
    check "it is step 4" test "$(cat small/full/latest)" = step-00000004
    mount -o remount,size=80m small
    expect 0 "steps +24 of 24" "with room for one more than is kept it goes on to the end" \
        lockstep run run.yaml --run-dir small/full -n 2 --resume --set checkpoint.every_steps=4 --set checkpoint.keep=1
    check "with the weights of a run that always had it" test "$(weights small/full)" = "$undisturbed"
    umount small
else
    skip "a full disk during a save beside training" "mounting a small tmpfs is not allowed here"
fi

# ---- storage that does not answer ----

${CC:-cc} -shared -fPIC -O1 -Wall -Wextra -Werror -o fail.so "$source_folder/hang.c" -ldl || exit 1
blind() { # NAME: rank 0 cannot open files of that name
    env TMPDIR="$work/here" LD_PRELOAD="$work/here/fail.so" LS_HANG=fail LS_HANG_RANK=0 LS_HANG_NAME="$1" \
        lockstep run run.yaml --run-dir blind -n 2 --resume "${further[@]}"
}
further=(--set train.steps=12 --accept train.steps --set checkpoint.every_steps=4 --set checkpoint.keep=0)
check "a run with two checkpoints" run blind -n 2 --set train.steps=8 --set checkpoint.every_steps=4 --set checkpoint.keep=0
there=$(names blind)
expect 4 "rank 0 .*Input/output error" "a rank whose storage does not answer as it loads ends the run with 4" blind rank-00001.safetensors
check "and no checkpoint is passed over for it" test "$(names blind)" = "$there"
expect 4 "does not see the run directory" "nor for a host that does not see the run directory" blind /token
check "as it says" test "$(names blind)" = "$there"
expect 0 "steps +12 of 12" "once storage answers the run goes on from the newest one" \
    lockstep run run.yaml --run-dir blind -n 2 --resume "${further[@]}"

# ---- a crash at any moment ----

# Every process of the run dies at once, as when the host loses power: after a random time while there is always a save under way.
tree() { # PID: it and its descendants
    local child
    echo "$1"
    for child in $(pgrep -P "$1"); do tree "$child"; done
}

# What the first attempt had in shared memory is there when the next run's first attempt begins.
begin_run again lockstep run run.yaml --run-dir again -n 2 --set train.steps=1000000
until_steps again 2
id=$(tr '\0' '\n' <"/proc/$(worker_pid again 0)/environ" | sed -n 's/^LOCKSTEP_RUN_ID=//p')
# shellcheck disable=SC2046
kill -KILL $(tree "${supervisors[again]}") 2>/dev/null
wait "${supervisors[again]}" 2>/dev/null
end_watched "${supervisors[again]}"
until_true 60 "nothing is left of a run that was killed" $$ again.err flock --nonblock again/lock true
check "but its shared memory" test -e "/dev/shm/lockstep-$id-a1"
rm -rf again
expect 0 "steps +24 of 24" "another run in the place of its folder has nothing to do with that" lockstep run run.yaml --run-dir again -n 1 \
    --set fault.max_restarts=0

saves_or_is_done() { [ "$(events crashed commit)" -gt "$steps_before" ] || grep -q "nothing is left to do" crashed.out; }
rounds=3 steps=100
[ "${LS_TEST_LONG:-0}" = 1 ] && rounds=40 steps=1500
RANDOM=20261121
good=0 damaged=0 steps_before=0
for round in $(seq $rounds); do
    ranks=$((1 + round % 3)) stage=$((round % 4))
    begin_run crashed lockstep run run.yaml --run-dir crashed -n $ranks --resume --set zero.stage=$stage --set train.steps=$steps \
        --set checkpoint.every_steps=2 --set fault.max_restarts=0
    started=${supervisors[crashed]}
    until_true 120 "round $round saves" $started crashed.err saves_or_is_done
    sleep "0.$((RANDOM % 90 + 10))"
    # shellcheck disable=SC2046
    kill -KILL $(tree $started) 2>/dev/null
    wait $started 2>/dev/null
    end_watched $started
    # A killed process that was writing may take a moment to go.
    until_true 60 "round $round leaves no coordinator" $$ crashed.err flock --nonblock crashed/lock true
    steps_before=$(events crashed commit)
    if lockstep verify crashed >verify.log 2>&1 && [ -f "crashed/checkpoints/$(cat crashed/latest)/manifest.json" ]; then
        good=$((good + 1))
    else
        cat verify.log
    fi
    grep -q "damaged" verify.log && damaged=$((damaged + 1))
done
check "after each of $rounds crashes the checkpoint before is good" test $good -eq $rounds -a $damaged -eq 0
last=$(cat crashed/latest)
check "$((10#${last#step-})) steps were saved in between" test $((10#${last#step-})) -ge $((2 * rounds))
check "the run goes on to its end" run crashed -n 2 --resume --set train.steps=$steps --set zero.stage=2
check "a run that was not disturbed" run calm -n 1 --set train.steps=$steps
check "has the same weights" test "$(weights crashed)" = "$(weights calm)"
expect 0 "the tokens read again give the digests" "and the ledger proves the samples" lockstep verify crashed --deep
exit 0
