#!/usr/bin/env bash
# Real Slurm on three virtual nodes: scripts/slurm/train.sbatch as it is, under both launchers; the end of a job's time with requeue and resume,
# with a signal and without; scancel; a lost node; an array. However a run was cut up, its weights are those of one that was not disturbed.
source "$(dirname "$0")/hosts/hosts.sh"
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
source "$(dirname "$0")/hosts/slurm.sh"
missing=$(slurm_missing)
if [ -n "$missing" ]; then
    skip "Slurm on three virtual nodes" "$missing"
    ok "that there is no Slurm here is told"
    exit
fi
config=$PWD/configs/tiny-gpt2.yaml sbatch=$PWD/scripts/slurm/train.sbatch
export LOCKSTEP=$lockstep
mkdir "$work/shared"
cd "$work/shared" || exit 1
hosts_up 4
# Real clusters say none of this.
unset "${!OMPI_MCA_@}"
slurm_up 3 || { not_ok "Slurm starts"; exit 1; }

fixed=(--set train.reduction=fixed --set train.micro_batch_size=1 --set evaluation.every_steps=0 --set train.steps=160 --set launcher.ranks=auto)
endless=(--set train.steps=100000000 --set evaluation.every_steps=0)
submit() { slurm sbatch --parsable "$@" || echo 0; }
until_steps() { # RUN COUNT
    local i
    for ((i = 0; i < 300; i++)); do
        has_steps "$1" "$2" && return 0
        sleep 0.1
    done
    return 1
}
# A requeued job would wait for two minutes; within the second of its requeue a node would not take it back.
until_done() { # JOB SECONDS: until it is COMPLETED, however often it is requeued
    local i
    for ((i = 0; i < $2 * 2; i++)); do
        case $(slurm_state "$1") in
        COMPLETED) return 0 ;;
        PENDING) sleep 3 && slurm scontrol update "jobid=$1" StartTime=now 2>/dev/null ;;
        FAILED | CANCELLED | TIMEOUT | NODE_FAIL | OUT_OF_MEMORY) break ;;
        esac
        sleep 0.5
    done
    echo "job $1 is $(slurm_state "$1")"
    return 1
}
weights() { sha256sum <"$1/final/model.safetensors"; }

on h1 "$lockstep" run "$config" -n 2 --run-dir undisturbed "${fixed[@]}" >undisturbed.log 2>&1
check "an undisturbed run, to compare with" test -e undisturbed/final

# The link makes a step of two hosts last a quarter of a second, however fast or busy this machine is: longer than Slurm takes to send
# its signal, which it looks for twice a minute.
for host in h2 h3 h4; do link $host rate 5; done
timed=$(submit -N2 --ntasks-per-node=1 -t 1 --signal=B:USR1@50 -o timed.out "$sbatch" "$config" --run-dir timed "${fixed[@]}")
cat >unsigned.sh <<'SCRIPT'
#!/bin/bash
"$LOCKSTEP" run "$@"
SCRIPT
unsigned=$(submit -N1 -n1 -t 1 -o unsigned.out unsigned.sh "$config" --run-dir unsigned --set checkpoint.before_end_seconds=52 \
    --set launcher.type=mpirun "${endless[@]}")
cancelled=$(submit -N1 -n1 -t 20 -o cancelled.out "$sbatch" "$config" --run-dir cancelled "${endless[@]}")
array=$(submit --array=0-1 -N1 -n1 -t 20 -o array-%a.out "$sbatch" "$config" --set launcher.type=mpirun --set 'name=array' "${fixed[@]}")

# ---- a job that is cancelled ----
until_steps cancelled 10
slurm scancel "$cancelled"
check "scancel ends the job" slurm_until "$cancelled" CANCELLED 30
check "the run had saved" grep -q "^lockstep: exit 75 .*saved at step" cancelled.out
check "it is not requeued" bash -c '! grep -q "attempt 2" cancelled.out'

# ---- the end of the time, without any signal ----
check "a run that knows its job's end saves in time" slurm_until "$unsigned" FAILED 40
check "and exits 75" grep -q "^lockstep: exit 75 .*saved at step" unsigned.out
check "long before Slurm would have ended it" grep -q "the time of Slurm job $unsigned is nearly up" unsigned.out

# ---- an array ----
check "an array of two completes" until_done "$array" 60
check "each task has a run of its own" test -e runs/array-0/final -a -e runs/array-1/final
check "with the weights of the undisturbed run" test "$(weights runs/array-0) $(weights runs/array-1)" = "$(weights undisturbed) $(weights undisturbed)"

# ---- the end of the time, with a signal ----
check "a job is requeued at the end of its time until its run is complete" until_done "$timed" 120
check "srun was found to work, and said so" grep -q "^launcher: srun --mpi=pmix (2 ranks found each other" timed.out
check "it was saved and went on where it was" grep -q "from step [1-9][0-9]*, attempt 2" timed.out
check "its weights are those of the undisturbed run" test "$(weights timed)" = "$(weights undisturbed)"
check "two hosts with one rank each took part" \
    bash -c 'tail -n 1 timed/metrics.jsonl | grep -qE "\"hosts\":\[\"h[234]\",\"h[234]\"\],\"ranks\":2,\"ranks_per_node\":1,"'

# ---- a lost node ----
for host in h2 h3 h4; do link $host rate 10; done
lost=$(submit -N2 --ntasks-per-node=1 -t 20 -o lost.out "$sbatch" "$config" --run-dir lost --set launcher.type=mpirun --set checkpoint.every_steps=20 "${fixed[@]}")
until_steps lost 30
node=$(slurm scontrol show job "$lost" | sed -n 's/ *NodeList=h\[*[0-9]*[-,]\([0-9]*\)\]*$/h\1/p')
link "$node" down
check "a job whose node $node is lost goes on elsewhere and completes" until_done "$lost" 120
link "$node" up
check "from a checkpoint" grep -q "from step [1-9][0-9]*, attempt" lost.out
check "its weights too are those of the undisturbed run" test "$(weights lost)" = "$(weights undisturbed)"

# ---- where ranks do not find each other ----
cat >alone.sh <<'SCRIPT'
#!/bin/bash
srun --mpi=none --overlap "${LOCKSTEP%/*}/lockstep-worker" --examine=0
srun --overlap "$LOCKSTEP" run "$1" --run-dir copies
SCRIPT
alone=$(submit -N2 -n2 -t 1 -o alone.out alone.sh "$config")
slurm_until "$alone" "FAILED|COMPLETED" 30 >/dev/null
check "copies of lockstep run started by srun are refused" grep -q "srun started 2 copies of 'lockstep run'" alone.out
if [ "$failures" -gt 0 ]; then tail -n 4 ./*.out; tail -n 40 "$work/slurm/log/slurmctld.log" "$work/slurm/log/slurmd-h2.log"; fi
