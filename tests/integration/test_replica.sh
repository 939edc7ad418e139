#!/usr/bin/env bash
# A wrong bit in one rank's copy of the parameters is found, laid to its rank, and undone by a rollback.
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
${CC:-cc} -shared -fPIC -O1 -Wall -Wextra -Werror -o "$work/hang.so" tests/integration/hang.c -ldl || exit 1
cd "$work" || exit 1
options=(--set train.reduction=fixed --set train.micro_batch_size=1 --set evaluation.every_steps=0 --set fault.replica_check_every=10)

# spoil RUN RANKS RANK STEPS ARGUMENTS...: a run in which RANK has a wrong bit behind some 60 steps; sets `status`.
spoil() {
    local run=$1 ranks=$2 rank=$3 steps=$4
    shift 4
    LD_PRELOAD=$work/hang.so LS_HANG=flip LS_HANG_RANK=$rank LS_HANG_FILE=$work/now \
        "$lockstep" run "$config" --run-dir "$run" -n "$ranks" "${options[@]}" --set "train.steps=$steps" "$@" >"$run.out" 2>"$run.err" </dev/null &
    local pid=$!
    for _ in $(seq 1200); do
        [ "$(grep -c '"kind":"step"' "$run/metrics.jsonl" 2>/dev/null || true)" -ge 60 ] 2>/dev/null && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.05
    done
    touch now
    status=0
    wait $pid || status=$?
    rm -f now
}

spoil three 3 1 20000
check "a wrong bit ends the run with 1" test "$status" = 1
check "with three copies its rank is named" grep -qE "^lockstep: replicas: behind step [0-9]+ copies of the parameters differ, that of rank 1 on $(hostname) is wrong" three.err

spoil two 2 0 20000
check "with two copies it is said what cannot be told" grep -q "which copy is wrong cannot be told" two.err
check "the log names the two ranks" grep -q "ranks 0 and 1 hold different parameters; which of them is wrong could be told with three copies" two/logs/rank-00000.log

"$lockstep" run "$config" --run-dir good -n 3 "${options[@]}" --set train.steps=600 >good.out 2>&1 || not_ok "an undisturbed run ends well" good.out
spoil back 3 2 600 --set fault.replica_mismatch=rollback --set checkpoint.every_steps=20
check "fault.replica_mismatch: rollback goes on" test "$status" = 0
check "from a checkpoint at which the copies agreed" grep -q "^attempt 2: resuming at step [0-9]* of 600" back.out
check "and leaves the weights of a run without the wrong bit" cmp good/final/model.safetensors back/final/model.safetensors
expect 2 "nothing to compare" "where there is one copy, the check is refused" \
    "$lockstep" run "$config" --run-dir none -n 2 "${options[@]}" --set zero.stage=3
