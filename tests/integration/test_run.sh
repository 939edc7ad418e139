#!/usr/bin/env bash
# `lockstep run` and its companions from outside: whole runs at several rank counts, every ending with its exit code, deaths of every
# process, keys, and the commands of docs/operations.md.
source "$(dirname "$0")/lib.sh"
repository=$PWD
config=$repository/configs/tiny-gpt2.yaml
mkdir "$work/bin" "$work/here"
ln -s "$lockstep" "$work/bin/lockstep"
export PATH=$work/bin:$PATH
say=$PWD/build/tests/integration/say
[ -x "$say" ] || { echo "not ok - build/tests/integration/say is missing (make tests)"; exit 1; }
cd "$work/here" || exit 1

# Runs in the background with many steps. begin RUN ARGUMENTS...: until it has done three of them; sets `supervisor`.
endless=(--set train.steps=1000000 --set evaluation.every_steps=0)
hangup=default # of the runs that begin: these tests may themselves be run by nohup
begin() {
    local run=$1 before
    shift
    before=$(steps_told "$run")
    begin_run "$run" env --$hangup-signal=HUP --default-signal=INT lockstep run "$config" --run-dir "$run" "${endless[@]}" "$@"
    supervisor=${supervisors[$run]}
    until_steps "$run" $((before + 3))
}
digests() { # RUN: "step digest" of every step, once
    sed -n 's/.*"kind":"step","step":\([0-9]*\).*"samples_digest":"\([0-9a-f]*\)".*/\1 \2/p' "$1/metrics.jsonl" | sort -n | uniq
}

# ---- whole runs ----

for ranks in 1 2 3; do
    expect 0 "steps +20 of 20" "a run of $ranks ranks ends well" lockstep run "$config" -n $ranks --run-dir ranks$ranks
done
check "every step has the same samples at 1, 2 and 3 ranks" \
    bash -c "[ $(digests ranks1 | wc -l) = 20 ] && [ '$(digests ranks1)' = '$(digests ranks2)' ] && [ '$(digests ranks1)' = '$(digests ranks3)' ]"
check "the run directory holds what it should" \
    test -f ranks2/config.yaml -a -f ranks2/journal.db -a -f ranks2/metrics.jsonl -a -f ranks2/console.log -a -f ranks2/logs/rank-00001.log \
    -a -f ranks2/checkpoints/step-00000020/manifest.json -a -e ranks2/final/model.safetensors
mkdir textfile
lockstep run "$config" --run-dir shown --set metrics.tensorboard=true --set metrics.prometheus=textfile >/dev/null 2>&1
check "TensorBoard's file has every step and validation" test \
    "$(cat shown/tensorboard/events.out.tfevents.* | grep -ao 'loss_metrics/global_avg_loss' | wc -l) $(cat shown/tensorboard/events.* | grep -ao 'validation_metrics/loss' | wc -l)" \
    = "20 $(grep -c '"kind":"validation"' shown/metrics.jsonl)"
check "Prometheus' file, and nothing beside it, tells of the run's last step and its end" python3 - <<'PYTHON'
import json, os, re
assert os.listdir("textfile") == ["lockstep-shown.prom"], os.listdir("textfile")
values = dict(re.findall(r'^lockstep_(\w+)\{run="shown"\} (.*)$', open("textfile/lockstep-shown.prom").read(), re.MULTILINE))
lines = [json.loads(line) for line in open("shown/metrics.jsonl")]
steps = [line for line in lines if line["kind"] == "step"]
validation = [line for line in lines if line["kind"] == "validation"][-1]
wanted = {"running": 0, "exit_code": 0, "step": 20, "total_steps": 20, "loss": steps[-1]["loss"], "lr": steps[-1]["lr"], "checkpoint_step": 20,
          "samples": steps[-1]["samples"], "tokens_total": steps[-1]["tokens"], "validation_loss": validation["loss"],
          "step_seconds_count": 20, "step_seconds_sum": sum(step["step_seconds"] for step in steps)}
for name, value in wanted.items():
    assert abs(float(values[name]) - value) <= 1e-7 * abs(value), (name, values[name], value)
PYTHON
expect 2 "metrics.prometheus: no file can be made in $work/here/nowhere: No such file" "a folder for Prometheus that is not there is refused" \
    lockstep run "$config" --run-dir unseen --set metrics.prometheus=nowhere
check "and no run directory is begun for it" test ! -e unseen
check "the keys are for their owner only" \
    bash -c '[ "$(stat -c %a ranks2/keys)" = 700 ] && [ "$(stat -c %a ranks2/keys/*.key | sort -u)" = 600 ]'
check "no key is in a log or the journal" \
    bash -c '! grep -rlF -e "$(sed -n "s/^secret: //p" ranks2/keys/worker.key)" ranks2 --exclude-dir=keys'
check "from the end of a step to that of the next passes what the step took and more, in all no more than the run" \
    python3 - ranks1/metrics.jsonl <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line for line in lines if line["kind"] == "step"]
assert len(steps) == 20 and all(line["wall_seconds"] >= line["step_seconds"] > 0 for line in steps), steps
assert sum(line["wall_seconds"] for line in steps) <= lines[-1]["wall_seconds"], lines[-1]
PYTHON
check "the last line of metrics.jsonl is the summary" \
    bash -c 'tail -n 1 ranks2/metrics.jsonl | grep -q "^{\"kind\":\"summary\",.*\"ranks\":2,.*\"exit_code\":0}$"'
expect 2 "its last step is 20.*--resume.*--run-dir" "an existing run directory is refused with both ways on" \
    lockstep run "$config" --run-dir ranks1
# As after a power cut between the last save and the end.
left=/dev/shm/$(grep -o 'LOCKSTEP_RUN_ID=[0-9a-f]*' ranks1/logs/launcher.log | head -n 1 | sed 's/.*=/lockstep-/')-a1
mkdir "$left.mpi" && touch "$left"
expect 0 "nothing is left to do" "--resume of a complete run is done at once" lockstep run "$config" --run-dir ranks1 --resume
check "and removes what a killed attempt left in memory" test ! -e "$left" -a ! -e "$left.mpi"
rm -rf "$left" "$left.mpi"
expect 2 "train.seed differs" "--resume with another identity names the key" \
    lockstep run "$config" --run-dir ranks1 --resume --set train.seed=9
expect 0 "from step 0, attempt 1" "--resume of a run that was never started starts it" lockstep run "$config" --run-dir fresh --resume

mkdir made
expect 2 "made exists.*--resume" "an empty folder is refused with the way on" lockstep run "$config" --run-dir made
expect 0 "from step 0, attempt 1" "which works" lockstep run "$config" --run-dir made --resume

# ---- closed and full outputs ----

lockstep run "$config" --run-dir silent <&- >&- 2>&-
check "a run without any standard stream ends well" test $? = 0
lockstep run "$config" --run-dir mute --set checkpoint.every_steps=5 >&- 2>mute.err </dev/null
check "so does one whose output alone is closed" test $? = 0 -a -e mute/checkpoints/step-00000020
check "and nothing was written into its files" grep -q "^generation [0-9]*$" mute/lock
check "its ledger is proven" lockstep verify mute
for command in "verify mute" "blame mute --step 3" "data inspect synthetic:1000"; do
    expect 1 "standard output" "'$command' tells that its output could not be written" bash -c "lockstep $command >/dev/full"
done

begin_run childless env --ignore-signal=CHLD lockstep run "$config" --run-dir childless
ends 0 "" "so does one that is begun where ends of children are ignored" childless

# ---- on a terminal ----

on_terminal() { # RUN VARIABLE...: what a run writes to a terminal
    local run=$1
    shift
    env TERM=xterm NO_COLOR= "$@" script -qec "lockstep run '$config' --run-dir $run --set train.steps=4 --set evaluation.every_steps=0 --set lr_schedule.warmup_steps=1" \
        /dev/null </dev/null >"$run.terminal" 2>&1
}
colour=$'\033\\[[0-9;]*m'
bar='\[#+\.*\].*step [0-9]+/4 .*ETA'
on_terminal coloured
on_terminal plain NO_COLOR=1
on_terminal dumb TERM=dumb
check "a terminal has a bar with step and ETA" grep -qE "$bar" coloured.terminal
check "in colour" grep -q "$colour" coloured.terminal
check "NO_COLOR leaves the bar and takes the colour" bash -c "grep -qE '$bar' plain.terminal && ! grep -q '$colour' plain.terminal"
check "a dumb terminal has plain lines" bash -c "grep -q 'step 4/4 ' dumb.terminal && ! grep -q $'\\033' dumb.terminal"
check "so has console.log" bash -c "grep -q 'step 4/4 ' coloured/console.log && ! grep -q $'\\033' coloured/console.log"

# ---- command lines ----

expect 2 "did you mean 'status'" "an unknown command names the nearest" lockstep stat
expect 2 "no CONFIG is named" "a missing CONFIG is told" lockstep run
expect 2 "[Dd]id you mean train.steps" "an unknown key names the nearest" lockstep run "$config" --run-dir none --set train.step=3
expect 2 "9 ranks|9 sequences|train.global_batch_size" "more ranks than sequences in a step are refused" \
    lockstep run "$config" -n 9 --run-dir none
expect 3 "nowhere" "a missing dataset is a data error" \
    lockstep run "$config" --run-dir none --set 'data.train=[{path: nowhere}]'
check "what is refused leaves no run directory" test ! -e none
expect 6 "openmpi-bin" "a missing mpirun names the package" env PATH= "$work/bin/lockstep" run "$config" --run-dir none
expect 0 "^ok +ZeroMQ" "doctor finds nothing wrong here" lockstep doctor
expect 0 "^ok +memory +[1-9][0-9]* MiB available" "doctor tells the memory" lockstep doctor
expect 1 "WRONG MPI" "doctor tells a missing mpirun" env PATH= "$work/bin/lockstep" doctor
if unshare -rm true 2>/dev/null; then
    printf 'mount -t tmpfs -o "$1" none /dev/shm && shift && exec "$@"\n' >with-memory
    expect 0 "/dev/shm has 4\.0 MiB free, and MPI may take 24 there" "a run with little shared memory keeps MPI's files elsewhere, and says so" \
        unshare -rm bash with-memory size=4m lockstep run "$config" -n 2 --run-dir little-memory
    expect 0 "/dev/shm cannot be written: Read-only file system" "so does one without any" \
        unshare -rm bash with-memory ro lockstep run "$config" -n 2 --run-dir no-memory
    expect 1 "WRONG /dev/shm +cannot be written: Read-only file system" "doctor tells shared memory that takes nothing" \
        unshare -rm bash with-memory ro lockstep doctor
else
    skip "runs with too little shared memory" "user namespaces are not allowed here"
fi
mkdir hanging
cat >hanging/mpirun <<'HANGING'
#!/bin/sh
[ "$1" != --version ] || { echo "mpirun (Open MPI) 4"; exit; }
echo $$ >"${0%/*}/pid"
exec sleep 1000
HANGING
printf '#!/bin/sh\nexec sleep 1000\n' >hanging/srun
chmod +x hanging/*
env PATH="$PWD/hanging:$PATH" lockstep doctor >doctor.log 2>&1 &
doctor=$!
until_true 60 "doctor goes on though srun does not answer" $doctor doctor.log test -s hanging/pid
kill -TERM $doctor
wait $doctor
check "a signal ends doctor" test $? -eq 143
check "and the launcher that it had started, which hangs" bash -c '! kill -0 "$(cat hanging/pid)"'
expect 0 "lockstep [0-9]" "--version says the version" lockstep --version
expect 0 "checkpoint" "--help lists the commands" lockstep --help

# ---- a running job ----

hangup=ignore # as nohup does
begin live -n 2
hangup=default
expect 0 "ranks +2 of 2" "status shows a running job" lockstep status live
lockstep status --json live >status.json
check "as JSON too" python3 - <<'PYTHON'
import json, os
status = json.load(open("status.json"))
assert status["running"] is True and status["run_dir"] == os.path.realpath("live") and status["name"] == "tiny-gpt2", status
assert status["ranks"] == status["ranks_joined"] == 2 and 1 <= status["step"] <= status["total_steps"] and status["attempt"] == 1, status
assert status["saved_step"] is None and status["loss"] > 0 and status["tokens_per_second"] > 0 and status["eta_seconds"] > 0, status
assert os.path.exists(f"/proc/{status['coordinator']['pid']}"), status
PYTHON
expect 0 "^saved: step [0-9]+" "checkpoint saves now" lockstep checkpoint live
check "what checkpoint saved is there" bash -c 'ls live/checkpoints | grep -q ^step-'
expect 4 "is in use" "a second coordinator finds the lock taken" lockstep run "$config" --run-dir live --resume
before=$(events live commit)
kill -USR2 $supervisor
until_events live commit $((before + 1))
check "SIGUSR2 saves and the run goes on" kill -0 $supervisor
kill -HUP $supervisor
before=$(steps_told live)
until_steps live $((before + 20))
check "a SIGHUP under nohup does nothing" kill -0 $supervisor
chmod 711 "$work"
other=(setpriv --reuid 65534 --clear-groups "$work/bin/lockstep")
if [ "$(id -u)" = 0 ] && "${other[@]}" --version >/dev/null 2>&1; then
    expect 2 "operator.key: Permission denied.*be that user" "another user is not told that nothing runs" "${other[@]}" status live
    expect 4 "is going on" "nor that somebody has the journal" "${other[@]}" verify live
    chmod 700 live
    expect 2 "cannot look into live: Permission denied" "nor that a run that is closed to him is none" "${other[@]}" status live
    chmod 755 live
else
    skip "another user is told what he may not" "needs root and setpriv"
fi
port=$(sed -n 's/^endpoint .*://p' live/lock)
expect 2 "port $port .*in use" "a port in use is told before anything is made" \
    lockstep run "$config" --run-dir none --set "coordinator.port=$port"
kill -TERM $supervisor
ends 75 "exit 75 .*saved at step" "SIGTERM saves and exits 75" live
expect 1 "nothing is running" "status of an ended run exits 1" lockstep status live
expect 1 "nothing is running" "and as JSON" lockstep status --json live
sed -n '/^{/,/^}/p' ../expect.log >status.json
check "which says with what it ended" python3 - <<'PYTHON'
import json
status = json.load(open("status.json"))
last = [line for line in map(json.loads, open("live/metrics.jsonl")) if line["kind"] == "step"][-1]["step"]
assert status["running"] is False and status["step"] == status["saved_step"] == last, (status, last)
assert status["ended"]["code"] == 75 and "saved at step" in status["ended"]["text"], status
PYTHON
expect 1 "nothing is running" "stop of an ended run exits 1" lockstep stop live
expect 2 "cannot use the run directory nowhere.*runs/NAME" "status of what is no run says what to name" lockstep status nowhere
saved=$(cat live/latest)
begin live --resume -n 1
check "--resume goes on where it was saved, at another rank count" \
    grep -q "from step $((10#${saved#step-})), attempt 2" live.out
kill -INT $supervisor $supervisor # as timeout(1) does: one interrupt, delivered twice
ends 130 "exit 130 .*saved at step" "SIGINT saves and exits 130, also when it is delivered twice" live
begin live --resume -n 3
expect 0 "stopping" "stop is accepted" lockstep stop live
ends 130 "exit 130 .*saved at step" "a stopped run is saved and exits 130" live
begin live --resume -n 2
kill -HUP $supervisor
ends 75 "exit 75" "SIGHUP saves and exits 75" live
begin live --resume -n 2
kill -USR1 $supervisor
ends 75 "exit 75" "SIGUSR1 saves and exits 75" live
begin live --resume -n 2
kill -STOP "$(worker_pid live 0)"
before=$(events live stop)
kill -INT $supervisor
until_events live stop $((before + 1))
sleep 0.3 # what comes within 0.2 s is the same interrupt
kill -INT $supervisor
ends 130 "exit 130 .*at once" "a second SIGINT ends at once" live
begin quit -n 2
kill -QUIT $supervisor
ends 130 "exit 130 .*at once at step [0-9]+, not saved since step 0" "SIGQUIT ends at once" quit
check "and saves nothing" bash -c '! ls quit/checkpoints 2>/dev/null | grep .'

# ---- the end ----

# Rank 0 is stopped while the last save is committed: it has not read that the run is over when the coordinator has said so. All steps
# are granted at the start, so that it gets there while the coordinator is stopped.
saved_to() { grep -q "^saved step $2 " "$1/console.log"; } # RUN STEP
wrote() { grep -q "step $2 written" "$1/logs/rank-00000.log"; } # RUN STEP
begin_run late lockstep run "$config" --run-dir late --set train.steps=250 --set evaluation.every_steps=0
until_steps late 3
coordinator=$(sed -n 's/^pid //p' late/lock)
kill -STOP "$coordinator"
until_true 60 "the last step is written" "${supervisors[late]}" late.err wrote late 250
sleep 0.3
worker=$(worker_pid late 0)
kill -STOP "$worker"
kill -CONT "$coordinator"
until_true 60 "the last step is saved" "${supervisors[late]}" late.err saved_to late 250
sleep 0.5
check "the coordinator stays until rank 0 has heard of the end" kill -0 "$coordinator"
kill -CONT "$worker"
ends 0 "" "which then leaves" late

# ---- deaths ----

begin lost -n 3 --set fault.max_restarts=0
workers=$(for rank in 0 1 2; do worker_pid lost $rank; done)
victim=$(worker_pid lost 2)
progress=$(grep -o '/dev/shm/lockstep-[^ ]*' "/proc/$victim/maps" | head -n 1)
kill -9 "$victim"
ends 6 "exit 6 .*rank [0-9] on .* lost at step [0-9]+ .*pid $victim" "a killed rank ends the run, naming rank, host, step and pid" lost
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }
all_gone() { [ "$(wc -w <<<"$*")" = 3 ] && for pid in $*; do gone "$pid" || return 1; done; }
check "no worker of the run is left" all_gone "$workers"
check "no progress file is left" test -n "$progress" -a ! -e "$progress"

lockstep run "$config" --run-dir steady -n 2 --set train.steps=600 --set checkpoint.every_steps=200 >steady.out 2>&1
begin shaken -n 2 --set train.steps=600 --set checkpoint.every_steps=200
for count in 1 2; do
    kill -9 "$(sed -n 's/^pid //p' shaken/lock)"
    until_events shaken coordinator_restarted $count
done
ends 0 "" "a run whose coordinator was killed twice ends well" shaken
check "it was told and started again" grep -q "the coordinator was killed by signal 9; starting it again" shaken.err
check "with the same samples in every step" bash -c "[ '$(digests steady | md5sum)' = '$(digests shaken | md5sum)' ]"
check "and the same chain" cmp <(sed -n '/ledger_chain/p' steady/final/trainer.json) <(sed -n '/ledger_chain/p' shaken/final/trainer.json)

# The coordinator has the request, and a save cannot begin while the rank is stopped.
begin asked -n 1 --set fault.stall_timeout_seconds=600
worker=$(worker_pid asked 0)
kill -STOP "$worker"
lockstep checkpoint asked >asked.answer 2>&1 &
asking=$!
end_after 120 $asking
sleep 1
kill -9 "$(sed -n 's/^pid //p' asked/lock)"
until_events asked coordinator_restarted 1
kill -CONT "$worker"
wait $asking
check "who waits for a save when the coordinator is killed is answered by the next one" grep -q "^saved: step" asked.answer
end_watched $asking
# A supervisor that stands still starts no other coordinator.
kill -STOP $supervisor
kill -9 "$(sed -n 's/^pid //p' asked/lock)"
(sleep 0.5 && kill -CONT $supervisor) &
expect 0 "stopping: " "who asks while no coordinator is there is answered by the next one as well" lockstep stop asked
ends 130 "" "and that run is stopped" asked

# A signal that has reached the coordinator and is not on disk: the next one hears of it too.
for signal in TERM INT; do
    begin "wish$signal"
    coordinator=$(sed -n 's/^pid //p' "wish$signal/lock")
    kill -STOP "$coordinator"
    kill -$signal $supervisor
    sleep 0.3
    kill -9 "$coordinator"
    ends "$([ $signal = TERM ] && echo 75 || echo 130)" "saved at step" "SIG$signal outlives the coordinator that it was told to" "wish$signal"
done

begin wished
coordinator=$(sed -n 's/^pid //p' wished/lock)
kill -STOP "$coordinator"
kill -USR2 $supervisor
sleep 0.3
kill -9 "$coordinator"
until_events wished commit 1
lockstep stop wished >/dev/null
ends 130 "" "so does SIGUSR2, which saves" wished

# A coordinator that stands still hears of no wish: the supervisor stays able to hear of the end.
begin flood
coordinator=$(sed -n 's/^pid //p' flood/lock)
kill -STOP "$coordinator"
for _ in $(seq 60); do
    kill -USR2 $supervisor
    sleep 0.02
done
kill -INT $supervisor
sleep 0.5
kill -INT $supervisor
ends 130 "did not answer" "wishes to save that nobody hears keep no second SIGINT from ending a run" flood

# Nor can it tell that it does. Its supervisor does, once.
begin numb
coordinator=$(sed -n 's/^pid //p' numb/lock)
kill -STOP "$coordinator"
until_true 60 "a coordinator that stands still is told of" $supervisor numb.err \
    grep -q "the coordinator (process $coordinator) has not gone on for 1[0-9] s: it is stopped\. .*'kill -CONT' lets it go on" numb.err
kill -CONT "$coordinator"
until_true 60 "and that it goes on" $supervisor numb.err grep -q "the coordinator goes on" numb.err
lockstep stop numb >/dev/null
ends 130 "" "which it does" numb
check "each is told once" test "$(grep -c "the coordinator" numb.err)" = 2

# Before the loop is there that hears of signals: the run still asks Slurm, which takes its time, and tries launchers.
mkdir slow && printf '#!/bin/sh\nexit 1\n' >slow/srun && chmod +x slow/srun
printf '#!/bin/sh\ntouch slow/asked\nwhile [ -e slow/hold ]; do sleep 0.02; done\n' >slow/squeue && chmod +x slow/squeue
touch slow/hold
PATH=$PWD/slow:$PATH begin_run soon env --default-signal=HUP SLURM_JOB_ID=7 SLURM_JOB_NODELIST="$(hostname)" SLURM_NTASKS=2 \
    lockstep run "$config" --run-dir soon "${endless[@]}"
until_true 120 "Slurm is asked" "${supervisors[soon]}" soon.err test -e slow/asked
kill -USR2 "${supervisors[soon]}"
kill -TERM "${supervisors[soon]}"
rm slow/hold
ends 75 "before the first step" "wishes that come as a run starts are heard" soon

# Killed as soon as it is there, before it can be ready: a run that goes on has another one.
lockstep run "$config" --run-dir steady -n 2 --set train.steps=620 --accept train.steps --resume >early.out 2>early.err &
early=$!
for _ in $(seq 1000); do
    child=$(grep -lsE "^PPid:[[:space:]]$early$" /proc/[0-9]*/status | cut -d/ -f3 | head -n 1)
    [ -z "$child" ] || break
    sleep 0.001
done
[ -z "$child" ] || kill -9 "$child"
wait $early
check "a coordinator that is killed while it starts is started again" test $? = 0 -a -d steady/checkpoints/step-00000620
check "and its end is told" grep -q "the coordinator was killed by signal 9; starting it again" early.err

begin mended -n 2 --set train.steps=900 --set checkpoint.every_steps=100
kill -9 "$(worker_pid mended 1)"
until_events mended recovered 1
expect 0 "^attempt +2, restart [01] of 3" "status tells attempt and restarts" lockstep status mended
ends 0 "" "a killed rank is mended by a restart" mended
check "the console tells the cause, the restart and how long it took" \
    bash -c 'grep -q "rank 1 on .* was lost" mended.out && grep -qE "^attempt 2: resuming at step [0-9]+ of 900 on 2 ranks; lost [0-9]+ steps?; restart 1 of 3" mended.out &&
        grep -qE "^attempt 2 goes on: step [0-9]+ done .* after the loss" mended.out'
check "every step is there in the end, and its samples are the ledger's" \
    bash -c "[ '$(digests mended | wc -l)' = 900 ] && lockstep verify mended --deep"

begin used -n 2 --set fault.max_restarts=1
kill -9 "$(worker_pid used 0)"
until_events used recovered 1
kill -9 "$(worker_pid used 1)"
ends 6 "exit 6 .*rank 1 on .* was lost" "when the restarts are used up, the run ends with the code of the last cause" used
check "and says so" grep -q "1 restart without progress is used up (fault.max_restarts)" used.err

begin orphan -n 2
kill -9 $supervisor
wait $supervisor 2>/dev/null
end_watched $supervisor
until_true 120 "the coordinator ends after its supervisor" $$ orphan.err flock -n orphan/lock true
check "without its supervisor the run is saved and ends" grep -q '"event":"end".*"code":75' orphan/metrics.jsonl

expect 6 "rank 0 has not started|ranks 0 to 1 have not started" "workers that never come are named" \
    lockstep run "$config" -n 2 --run-dir absent --set fault.start_timeout_seconds=1 --set 'launcher.arguments=[sh, -c, "sleep 60"]'

# ---- workers by hand ----

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
worker=$(dirname "$lockstep")/lockstep-worker
begin_run hand lockstep coordinator "$config" -n 2 --run-dir hand
until_true 120 "the coordinator says how to join it" "${supervisors[hand]}" hand.err grep -q '^mpirun' hand.out
endpoint=$(sed -n 's/^endpoint //p' hand/lock)
by_hand() { mpirun -n 2 --oversubscribe "$worker" --coordinator "$endpoint" "$@"; }
expect 6 "key" "a worker with the key of another run is told so" by_hand --key live/keys/worker.key
expect 2 "worker key" "a worker with the operator's key is told so" by_hand --key hand/keys/operator.key
chmod 644 hand/keys/worker.key
expect 2 "chmod 600" "a key that others may read is refused" by_hand --key hand/keys/worker.key
chmod 600 hand/keys/worker.key
check "the line that the coordinator prints joins it" by_hand --key hand/keys/worker.key
ends 0 "" "a coordinator by itself ends with its run" hand

# Without a launcher of ours workers are told to go when an attempt is over, and the next one waits for others; not at the end of the run.
begin_run left lockstep coordinator "$config" -n 2 --run-dir left
until_true 120 "the coordinator says how to join it" "${supervisors[left]}" left.err grep -q '^mpirun' left.out
"$say" "$(sed -n 's/^endpoint //p' left/lock)" left/keys/worker.key 0 open >left.said &
saying=$!
until_true 60 "a worker begins" $saying left.said grep -q setup left.said
kill -QUIT "${supervisors[left]}"
ends 130 "" "a run without workers is stopped" left
wait $saying
check "a worker by hand is told of the end, and of nothing else" bash -c "[ \"\$(grep -c ended left.said)\" = 1 ] && grep -q '^ended 130: stopped' left.said"

begin_run stood lockstep coordinator "$config" -n 2 --run-dir stood --set fault.start_timeout_seconds=3
until_true 120 "the coordinator says how to join it" "${supervisors[stood]}" stood.err grep -q '^mpirun' stood.out
endpoint=$(sed -n 's/^endpoint //p' stood/lock)
sleep 0.6
kill -STOP "${supervisors[stood]}"
by_hand --key stood/keys/worker.key >stood.mpi 2>&1 &
joining=$!
sleep 4
kill -CONT "${supervisors[stood]}"
ends 0 "" "a coordinator that was stopped for longer than ranks may take to come hears those that have" stood
wait $joining
check "and they end well" test $? = 0
