#!/usr/bin/env bash
# lockstep run at every ZeRO stage, over MPI: the same losses, checkpoints that go on at another stage, refusals.
. "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
config=configs/tiny-gpt2.yaml

run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$lockstep" run $config --run-dir "$work/$name" --set train.steps=8 "$@" >"$work/$name.log" 2>&1
}
losses() { # NAME
    sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),.*/\1 \2/p' "$work/$1/metrics.jsonl"
}
# alike WHAT ONE OTHER FIRST: from step FIRST on, losses differ by at most a millionth, and there are 9 - FIRST of them.
alike() {
    paste <(losses "$2" | awk -v first="$4" '$1 >= first') <(losses "$3" | awk -v first="$4" '$1 >= first') >"$work/pairs"
    if awk -v steps=$((9 - $4)) '{d = $2 - $4; if ($1 != $3 || d * d > 1e-12 * $2 * $2) bad = 1}
        END {exit bad || NR != steps}' "$work/pairs"; then ok "$1"; else not_ok "$1" "$work/pairs"; fi
}

run stage0 -n 1 || cat "$work/stage0.log"
for stage in 1 2 3; do
    run stage$stage -n 3 --set zero.stage=$stage || tail -n 5 "$work/stage$stage.log"
    alike "stage $stage on 3 ranks has the losses of stage 0 on 1" stage0 stage$stage 1
done
run hybrid -n 4 --set zero.stage=3 --set zero.replicas=2 --set train.micro_batch_size=1
alike "two replicas of two ranks have them too" stage0 hybrid 1
if grep -q '"kind":"summary".*"zero_stage":3' "$work/hybrid/metrics.jsonl"; then
    ok "the summary names the stage"
else
    not_ok "the summary names the stage" "$work/hybrid/metrics.jsonl"
fi
"$lockstep" generate "$work/stage3/checkpoints/step-00000008" --prompt ab --max-tokens 8 --temperature 0 >"$work/three" 2>&1
"$lockstep" generate "$work/stage0/checkpoints/step-00000008" --prompt ab --max-tokens 8 --temperature 0 >"$work/none" 2>&1
check "weights written at stage 3 say what those of stage 0 say" cmp "$work/three" "$work/none"

# Half the steps at stage 3 on 3 ranks, the rest at stage 1 on 2.
run half -n 3 --set zero.stage=3 --set checkpoint.every_steps=4
rm -rf "$work/half/checkpoints/step-00000008"
"$lockstep" run $config --run-dir "$work/half" --set train.steps=8 --set checkpoint.every_steps=4 --set zero.stage=1 -n 2 \
    --resume >"$work/resumed.log" 2>&1 || tail -n 5 "$work/resumed.log"
sed -i '/"attempt":1,/d' "$work/half/metrics.jsonl"
alike "a checkpoint of stage 3 goes on at stage 1" stage0 half 5

run narrow -n 3 --set zero.stage=2 --set zero.gradient_dtype=bf16 || tail -n 5 "$work/narrow.log"
if paste <(losses stage0) <(losses narrow) | awk '{d = ($2 - $4) / $2; if (d * d > 1e-6) bad = 1} END {exit bad || NR != 8}'; then
    ok "gradients that travel in bf16 train within a thousandth"
else
    not_ok "gradients that travel in bf16 train within a thousandth" "$work/narrow.log"
fi

expect 2 "zero.stage" "a stage above 3 is refused" "$lockstep" run $config --run-dir "$work/no" -n 2 --set zero.stage=4
expect 2 "2 does not divide 3 ranks" "replicas that do not divide the ranks are refused" \
    "$lockstep" run $config --run-dir "$work/no" -n 3 --set zero.stage=1 --set zero.replicas=2
expect 2 "zero.accumulate" "accumulating whole gradients at stage 2 is refused" \
    "$lockstep" run $config --run-dir "$work/no" -n 2 --set zero.stage=2 --set zero.accumulate=local
