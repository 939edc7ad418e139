#!/usr/bin/env bash
# train.reduction: fixed over MPI: the same weights to the last byte at any rank count, stage and number of threads, also
# when a run was stopped and went on at another rank count; hosts and counts that cannot keep the promise are refused.
. "$(dirname "$0")/lib.sh"
config=configs/tiny-gpt2.yaml
fixed=(--set train.reduction=fixed --set train.global_batch_size=10 --set train.micro_batch_size=3)
steps=60

run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$lockstep" run $config --run-dir "$work/$name" "${fixed[@]}" --set train.steps=$steps "$@" >"$work/$name.log" 2>&1
}
weights() { echo "$work/$1/checkpoints/step-000000$steps/model.safetensors"; }
same() { check "$1" cmp "$(weights "$2")" "$(weights "$3")"; }

run one -n 1 --set launcher.threads_per_rank=1 || tail -n 5 "$work/one.log"
run two -n 2 --set launcher.threads_per_rank=2 || tail -n 5 "$work/two.log"
same "two ranks leave the weights of one" one two
run three -n 3 --set launcher.threads_per_rank=1 --set zero.stage=3 || tail -n 5 "$work/three.log"
same "three ranks at stage 3 leave them too" one three
run four -n 4 --set launcher.threads_per_rank=1 --set zero.stage=2 --set activation_checkpointing.mode=full ||
    tail -n 5 "$work/four.log"
same "four ranks at stage 2 that compute activations again leave them too" one four

losses() { sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),"grad_norm":\([-0-9.e]*\),.*/\1 \2 \3/p' "$work/$1/metrics.jsonl"; }
losses one >"$work/losses.one"
losses three >"$work/losses.three"
alike() { [ "$(wc -l <"$1")" -eq $steps ] && cmp "$1" "$2"; }
check "losses and norms are the same digits" alike "$work/losses.one" "$work/losses.three"

# Stopped on 3 ranks as soon as it trains, gone on with on 2; steps enough that the stop comes in time.
long=(--set train.global_batch_size=60 --set train.micro_batch_size=9 --set train.steps=300 --set launcher.threads_per_rank=1)
run whole -n 1 "${long[@]}" || tail -n 5 "$work/whole.log"
"$lockstep" run $config --run-dir "$work/half" "${fixed[@]}" "${long[@]}" -n 3 --set zero.stage=1 >"$work/half.log" 2>&1 &
pid=$!
for _ in $(seq 500); do grep -qs '"kind":"step"' "$work/half/metrics.jsonl" && break; sleep 0.02; done
"$lockstep" stop "$work/half" >"$work/stop.log" 2>&1
status=0
wait $pid || status=$?
if [ $status -eq 130 ]; then ok "a stopped run has saved"; else not_ok "a stopped run has saved (exit $status)" "$work/half.log"; fi
run half -n 2 "${long[@]}" --resume || tail -n 5 "$work/half.log"
check "a run stopped on three ranks and gone on with on two leaves the weights of one that was not" \
    cmp "$work/whole/checkpoints/step-00000300/model.safetensors" "$work/half/checkpoints/step-00000300/model.safetensors"

run fast -n 1 --set train.reduction=fast --set launcher.threads_per_rank=1 || tail -n 5 "$work/fast.log"
if cmp -s "$(weights one)" "$(weights fast)"; then
    not_ok "the order of the sums shows in the weights"
else
    ok "the order of the sums shows in the weights"
fi

expect 2 "has 4: not enough for 5 ranks" "more ranks than slots are refused" \
    "$lockstep" run $config --run-dir "$work/no" -n 5 "${fixed[@]}"
expect 2 "zero.gradient_dtype: found bf16" "gradients that travel rounded are refused" \
    "$lockstep" run $config --run-dir "$work/no" -n 2 "${fixed[@]}" --set zero.gradient_dtype=bf16
expect 2 "train.reduction" "going on with another reduction is refused" \
    "$lockstep" run $config --run-dir "$work/half" "${long[@]}" -n 2 --resume

# A second rank whose libraries compute as on an older processor.
cat >"$work/older" <<'WRAPPER'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" != 1 ] || export ONEDNN_MAX_CPU_ISA=SSE41
exec "$@"
WRAPPER
chmod +x "$work/older"
mixed() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$lockstep" run $config --run-dir "$work/$name" -n 2 --set train.steps=2 --set "launcher.wrapper=[$work/older]" "$@"
}
if [ "$(uname -m)" = x86_64 ]; then
    expect 2 "rank . on .* computes with .*train.reduction: fixed needs them equal" "hosts that compute differently are refused" \
        mixed mixed "${fixed[@]}"
    expect 2 "rank . on .* computes with .*optimizer.type: muon" "so they are with Muon at stage 0, whose copies would drift apart" \
        mixed copies --set optimizer.type=muon
    expect 2 "rank . on .* computes with .*optimizer.type: muon" "and with replicas" \
        mixed replicas --set optimizer.type=muon --set zero.stage=1 --set zero.replicas=2
    expect 0 "" "where each matrix is computed once they train" mixed once --set optimizer.type=muon --set zero.stage=1
    expect 0 "" "and with another optimizer" mixed other
else
    skip "hosts that compute differently are refused" "no way to have a library compute differently on this processor"
fi
