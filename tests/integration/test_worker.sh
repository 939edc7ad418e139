#!/usr/bin/env bash
# Workers started by hand: under mpirun and alone, signals to a rank, a launcher that dies, and what cannot start.
source "$(dirname "$0")/lib.sh"
worker=$(dirname "$lockstep")/lockstep-worker
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
# Under a launcher that is killed Open MPI leaves its shared memory behind: in the folder of the test.
mpi=(mpirun --bind-to none --oversubscribe --mca pml ob1 --mca btl self,vader --mca btl_vader_backing_directory "$work")

# coordinate RUN ARGUMENTS...: starts a coordinator; its pid is in $coordinator, its address in $address.
coordinate() {
    local run=$1
    shift
    "$lockstep" coordinator configs/tiny-gpt2.yaml --run-dir "$run" "$@" >"$run.log" 2>&1 </dev/null &
    coordinator=$!
    address=
    for _ in $(seq 300); do
        address=$(grep -oE 'tcp://[^ ;]+' "$run.log" | head -n 1)
        [ -n "$address" ] && return
        sleep 0.1
    done
    not_ok "the coordinator says where it listens" "$run.log"
    exit 1
}

gone() { ! kill -0 "$1" 2>/dev/null; }
process_of() { grep -oE 'process [0-9]+' "$1" 2>/dev/null | tail -n 1 | cut -d' ' -f2; }
losses() { grep '"kind":"step"' "$1/metrics.jsonl" | grep -oE '"(step|loss|samples_digest)": ?"?[-+.0-9a-f]+' | cut -d: -f2 | tr -d ' "' | paste - - -; }

coordinate "$work/two" --set launcher.ranks=2
check "two ranks under mpirun join by address and key file" \
    "${mpi[@]}" -n 2 "$worker" --coordinator "$address" --key "$work/two/keys/worker.key"
wait "$coordinator"
[ $? -eq 0 ] && ok "the coordinator ends with 0 after them" || not_ok "the coordinator ends with 0 after them" "$work/two.log"

coordinate "$work/one" --set launcher.ranks=1
check "a rank without mpirun trains alone, its key on standard input" \
    sh -c "LOCKSTEP_COORDINATOR=$address $worker <$work/one/keys/worker.key"
wait "$coordinator"
if [ -f "$work/one/final/model.safetensors" ]; then ok "its last step is saved"; else not_ok "its last step is saved" "$work/one.log"; fi

# The same run in two halves, at other rank counts, feeds the same samples and learns the same.
"$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/halves" -n 3 --set checkpoint.every_steps=10 >"$work/halves.log" 2>&1
rm -rf "$work/halves/checkpoints/step-00000020"
"$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/halves" -n 2 --resume --set checkpoint.every_steps=10 >>"$work/halves.log" 2>&1
losses "$work/two" >"$work/whole.txt"
losses "$work/halves" | tail -n 10 >"$work/second.txt"
tail -n 10 "$work/whole.txt" | paste - "$work/second.txt" | awk '
    $1 != $4 || $3 != $6 { bad = 1 }
    { difference = ($2 - $5) / $2; if (difference < 0) difference = -difference; if (difference > 1e-5) bad = 1; rows++ }
    END { exit bad || rows != 10 }' &&
    ok "ten steps after a resume from 3 ranks on 2 have the digests and losses of a run that never stopped" ||
    not_ok "ten steps after a resume from 3 ranks on 2 have the digests and losses of a run that never stopped" "$work/second.txt"

coordinate "$work/long" --set launcher.ranks=2 --set train.steps=1000000
"${mpi[@]}" -n 2 "$worker" --coordinator "$address" --key "$work/long/keys/worker.key" >"$work/long.mpirun" 2>&1 </dev/null &
launcher=$!
until_true 120 "a rank says its process" "$launcher" "$work/long.mpirun" grep -qs process "$work/long/logs/rank-00001.log"
rank=$(process_of "$work/long/logs/rank-00001.log")
kill -INT "$rank"; kill -HUP "$rank"; kill -USR1 "$rank"; kill -USR2 "$rank"
kill -TERM "$rank"
saved() { [ -s "$work/long/latest" ]; }
until_true 120 "SIGTERM to a rank becomes a save" "$launcher" "$work/long.log" saved && ok "SIGTERM to a rank becomes a save"
kill -0 "$rank" 2>/dev/null && ok "a rank outlives SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and SIGTERM" ||
    not_ok "a rank outlives SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and SIGTERM" "$work/long.mpirun"
shared=$(grep -m 1 -oE '/dev/shm/lockstep-[0-9a-f]+-a1$' "/proc/$rank/maps")
kill -KILL "$launcher"
until_true 120 "a rank leaves when its launcher is gone" $$ "" gone "$rank" && ok "a rank leaves when its launcher is gone"
kill -KILL "$coordinator" 2>/dev/null
wait "$coordinator" "$launcher" 2>/dev/null
run_id=${shared#*lockstep-} run_id=${run_id%-a1}
check "what is left in memory when all of them are gone is found" test -n "$run_id" -a -f "$shared"
expect 0 '1 files removed from /dev/shm' "and removed by --clean" "$worker" --clean "$run_id:2"
check "so that it is gone" test ! -e "$shared"

expect 2 'no coordinator: give --coordinator' "no address is refused" "$worker"
expect 2 'cannot open the key file' "a key file that is not there is refused" "$worker" -c tcp://127.0.0.1:9 -k "$work/none"
expect 2 'standard input is empty' "no key at all is refused" "$worker" -c tcp://127.0.0.1:9
expect 6 'MPI sees 1 rank, Slurm started 4' "ranks that MPI does not see are refused" \
    env SLURM_NTASKS=4 "$worker" -c tcp://127.0.0.1:9
expect 0 'lockstep-worker [0-9]' "--version" "$worker" --version
