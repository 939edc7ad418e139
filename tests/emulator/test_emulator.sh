#!/usr/bin/env bash
# The CUDA kernels on CPUs: their tests under the sanitizers, faults that must be reported, and what nvcc says of spills.
# LS_TEST_LONG=1 takes every barrier out of the kernels, one at a time, and expects the race to be found.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../integration/lib.sh"

cuda=$(make -s cuda-home)
if [ -z "$cuda" ]; then
    skip "CUDA kernels on CPUs" "no CUDA toolkit, whose headers they need"
    exit 0
fi
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive TSAN_OPTIONS=halt_on_error=1
jobs=-j$(nproc)

check "kernels and their tests compile for CPUs with the address and undefined-behaviour sanitizers" make -s "$jobs" emulator-asan
check "and with the thread sanitizer" make -s "$jobs" emulator-tsan

# Passes on the lines of a test program, with the sanitizer's name.
run() { # SANITIZER PROGRAM
    local status=0
    "build/$1/emulator/tests/gpu/$2" >"$work/run.log" 2>&1 || status=$?
    sed -n "s/^ok - /ok - $1, $2: /p" "$work/run.log"
    if [ "$status" -ne 0 ]; then not_ok "$1, $2 (exit $status)" "$work/run.log"; fi
}
for source in tests/gpu/test_*.cu; do
    name=$(basename "$source" .cu)
    run asan "$name"
    OMP_NUM_THREADS=1 LS_TEST_BRIEF=1 LS_EMULATOR_SEED=$RANDOM run tsan "$name"
done

# fault SANITIZER NAME TEXT: the program with this fault fails and says why.
fault() {
    local status=0
    "build/$1/emulator/tests/emulator/faults" "$2" >"$work/fault.log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        not_ok "$1 lets the fault '$2' pass" "$work/fault.log"
    elif ! grep -qE -- "$3" "$work/fault.log"; then
        not_ok "$1 does not say what the fault '$2' is" "$work/fault.log"
    else
        ok "$1 finds the fault '$2'"
    fi
}
check "asan: kernels without a fault pass" build/asan/emulator/tests/emulator/faults sound
check "tsan: kernels without a fault pass" build/tsan/emulator/tests/emulator/faults sound
fault asan out-of-bounds 'heap-buffer-overflow'
fault asan dynamic-shared-overrun 'use-after-poison'
fault asan static-shared-overrun 'index 64 out of bounds'
fault asan misaligned 'requires 16 byte alignment'
fault asan divergent-barrier 'emulator: divergent barrier: threads wait at tests/emulator/faults.cu:[0-9]+ and at'
fault asan lane-has-left 'emulator: .* names a lane that has exited'
fault asan caller-outside-mask 'emulator: .* leaves out its caller'
fault asan masks-differ 'emulator: .* name different masks'
fault asan different-operations 'emulator: .* at different operations'
fault asan waits-forever 'emulator: deadlock: 2 threads wait at a barrier, 62 for lanes'
fault asan broken-warp 'emulator: a block of no whole warps'
fault asan too-much-shared 'emulator: .* more dynamic shared memory than was allowed'
fault asan unwritten-shared 'not a number, 128 times'
fault asan copy-not-awaited 'not a number, [0-9]+ times'
fault asan misaligned-copy 'emulator: a copy to shared memory is not aligned'
fault asan copy-under-way-at-the-end 'emulator: a thread ends with copies to shared memory under way'
fault tsan missing-barrier 'data race.*faults.cu|data race in mirror'
fault tsan missing-copy-barrier 'data race.*(tensor.h|faults.cu|memcpy)'
fault tsan blocks-race 'data race.*faults.cu|data race in blocks_race'

# mutate FILE N TEST: without the Nth barrier of a file, TEST fails with a race.
mutate() {
    local copy=$work/mutant/$1 objects=() object source
    rm -rf "$work/mutant" && mkdir -p "$(dirname "$copy")"
    awk -v n="$2" '/__syncthreads\(\);/ && ++seen == n { sub(/__syncthreads\(\);/, ";") } { print }' "$1" >"$copy"
    if cmp -s "$1" "$copy"; then
        not_ok "barrier $2 of $1 can be taken out"
        return
    fi
    for source in worker/device/cuda/*.cu; do
        object=build/tsan/emulator/${source%.cu}.o
        if [ "$1" = "$source" ] || { [[ $1 = *.h ]] && grep -qsF "$1" "${object%.o}.d"; }; then
            object=$work/mutant/$(basename "$source" .cu).o
            [ "$1" = "$source" ] || cp "$source" "$work/mutant/$(basename "$source")"
            local from=$copy
            [ "$1" = "$source" ] || from=$work/mutant/$(basename "$source")
            ${CXX:-g++} -x c++ -std=c++20 -O1 -g -I"$work/mutant" -I. -isystem "$cuda/include" -DLS_EMULATE -w -fno-strict-aliasing \
                -fsanitize=thread -c -o "$object" "$from" || return
        fi
        objects+=("$object")
    done
    ${CXX:-g++} -fsanitize=thread -fopenmp -o "$work/mutant/test" "build/tsan/emulator/tests/gpu/$3.o" "${objects[@]}" \
        build/tsan/emulator/tests/emulator/scheduler.o || return
    if OMP_NUM_THREADS=1 LS_TEST_BRIEF=1 "$work/mutant/test" >"$work/mutant.log" 2>&1; then
        not_ok "$1 without its barrier $2 is not noticed" "$work/mutant.log"
    elif grep -q 'ThreadSanitizer: data race' "$work/mutant.log"; then
        ok "$1 without its barrier $2 is a race, and found"
    else
        not_ok "$1 without its barrier $2 fails in another way" "$work/mutant.log"
    fi
}
mutate worker/device/cuda/tensor_attention_backward.cu 2 test_attention
if [ "${LS_TEST_LONG:-0}" = 1 ]; then
    for pair in attention.cu:test_attention attention_backward.cu:test_attention tensor_attention.cu:test_attention \
        tensor_attention_backward.cu:test_attention columns.h:test_rows norm.cu:test_rows cross_entropy.cu:test_rows \
        embedding.cu:test_rows optimizer.cu:test_optimizer orthogonal.cu:test_optimizer ordered.h:test_optimizer; do
        file=worker/device/cuda/${pair%:*}
        for n in $(seq "$(grep -c '__syncthreads();' "$file")"); do mutate "$file" "$n" "${pair#*:}"; done
    done
fi

# Registers that do not suffice go to memory: a kernel that was fast is not any more, and no test would tell.
check "kernels compile for sm_80, sm_90 and as PTX without a warning" make -s "$jobs" build/libcuda-kernels.a
spilled=0 kernels=0
for log in build/worker/device/cuda/*.cu.log; do
    kernels=$((kernels + $(grep -c 'Compiling entry function' "$log")))
    lines=$(grep -cE ' [1-9][0-9]* bytes spill' "$log") && spilled=$((spilled + lines)) && cp "$log" "$work/spill.log"
done
if [ "$kernels" -gt 0 ] && [ "$spilled" -eq 0 ]; then
    ok "none of $kernels kernels spills registers"
else
    not_ok "$spilled of $kernels kernels spill registers" "$work/spill.log"
fi
