#!/usr/bin/env bash
# NCCL's communicators over the stand-ins for CUDA: collectives on 1 to 4 ranks in every order of streams, and what is lost, missing or too old.
source "$(dirname "$0")/lib.sh"
: "${LS_TEST_LONG:=0}"

if ! make -s -j2 emulated >"$work/make.log" 2>&1; then
    not_ok "the emulated worker builds" "$work/make.log"
    exit 1
fi
program=build/emulator/tests/emulated/mpi_nccl
if [ ! -x "$program" ]; then
    skip "collectives by NCCL" "CUDA's headers are not here (nvcc was not found)"
    exit
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export LOCKSTEP_CUDA_LIBRARIES=$PWD/build/emulator/lib LS_STANDIN_DEVICES=4
start() { # RANKS [MPIRUN-OPTIONS] PROGRAM...
    local ranks=$1
    shift
    timeout -k 5 60 mpirun -np "$ranks" --oversubscribe --bind-to none --mca btl self,vader,tcp --mca pml ob1 --mca mpi_yield_when_idle 1 "$@"
}

for case in "lazy 1" "lazy 2" "lazy 3" "lazy 4" "eager 3" "hasty 2"; do
    read -r order ranks <<<"$case"
    LS_STANDIN_ORDER=$order check "collectives, $ranks ranks, $order streams" start "$ranks" "$program"
done
LS_STANDIN_GUARD=1 check "nothing but work on streams touches device memory" start 3 "$program"
if [ "$LS_TEST_LONG" = 1 ]; then
    make -s -j2 BUILD=build/asan OPTIMISE='-O1 -DLS_DEBUG' \
        SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' build/asan/emulator/tests/emulated/mpi_nccl >"$work/make.log" 2>&1
    LOCKSTEP_CUDA_LIBRARIES=$PWD/build/asan/emulator/lib ASAN_OPTIONS=detect_leaks=0 LS_STANDIN_ORDER=lazy \
        check "collectives on 3 ranks under sanitizers, each compared before it runs" start 3 build/asan/emulator/tests/emulated/mpi_nccl
fi

# Faults. mpirun would end the others itself; told not to, it shows that they leave by their own watchdogs.
export LS_STANDIN_ORDER=lazy
fault() { # SECONDS TEXT WHAT VARIABLE=VALUE...: some rank leaves with 6 and says TEXT, and within SECONDS all have left.
    local limit=$1 text=$2 what=$3 before=$SECONDS status=0
    shift 3
    env "$@" timeout -k 5 60 mpirun -np 3 --mca orte_enable_recovery 1 --oversubscribe --bind-to none --mca btl self,vader,tcp --mca pml ob1 \
        --mca mpi_yield_when_idle 1 "$program" faults >"$work/fault.log" 2>&1 </dev/null || status=$?
    local took=$((SECONDS - before))
    if [ "$status" = 124 ] || [ "$took" -gt "$limit" ]; then
        not_ok "$what (status $status after $took s)" "$work/fault.log"
    elif [ "$(grep -cE "exit 6 \(communication\): .*$text" "$work/fault.log")" -lt 1 ]; then
        not_ok "$what (no 'exit 6 ... $text')" "$work/fault.log"
    else
        ok "$what"
    fi
}
# 10 s are the promise; the rest is start, end and a busy machine.
fault 25 'rank 1 \(process [0-9]+ on [^)]+\) is gone' "a rank killed inside a collective is named, and the others leave with 6" LS_STANDIN_NCCL_DIE=1:20
named=$(grep -c 'exit 6 (communication): communication: rank 1 ' "$work/fault.log")
if [ "$named" = 2 ]; then ok "both of the others name it"; else not_ok "both of the others name it ($named did)" "$work/fault.log"; fi
fault 25 'collective [0-9]+ has not ended' "a collective that a rank does not join ends at the time limit" LS_STANDIN_NCCL_HANG=2:20 LS_TEST_TIMEOUT=2
fault 25 'NCCL reports .remote process exited' "an error that NCCL meets by itself ends the run" LS_STANDIN_NCCL_FAIL=0:20 LS_TEST_TIMEOUT=5

unset LS_STANDIN_ORDER
LS_STANDIN_NCCL_VERSION=21400 expect 1 'NCCL 2.14.0 at [^ ]*libnccl.so.2 is too old, 2.18.1 or newer is needed' "an old NCCL is named with path and version" start 2 "$program"
# No NCCL anywhere: the machine's own is hidden, if it is where CUDA is.
mkdir "$work/libraries" "$work/nothing"
cp build/emulator/lib/libcublasLt* "$work/libraries/"
if unshare -m true 2>/dev/null; then
    LOCKSTEP_CUDA_LIBRARIES=$work/libraries VIRTUAL_ENV='' CONDA_PREFIX='' HOME=$work expect 1 'libnccl.so.2 cannot be opened.*LOCKSTEP_CUDA_LIBRARIES' \
        "a missing NCCL is named with the places that were tried" unshare -m sh -c 'mount --bind "$0" "$(realpath /usr/local/cuda/lib64)" 2>/dev/null; exec "$@"' \
        "$work/nothing" timeout -k 5 60 mpirun -np 2 --oversubscribe --bind-to none --mca btl self,vader,tcp --mca pml ob1 "$program"
else
    skip "a missing NCCL is named with the places that were tried" "no mount namespaces here"
fi
LS_TEST_GPU=0 expect 6 'invalid usage' "two ranks on one GPU are refused" start 2 "$program"
LS_TEST_GPU=0 check "ranks that claim a host each share a GPU" start 2 sh -c "NCCL_HOSTID=rank-\$OMPI_COMM_WORLD_RANK exec $program"
