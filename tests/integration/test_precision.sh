#!/usr/bin/env bash
# lockstep run in bf16 and fp16, and with activation checkpointing, over MPI.
. "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1

run() { # NAME CONFIG ARGUMENTS...
    local name=$1 config=$2
    shift 2
    "$lockstep" run "configs/$config.yaml" --run-dir "$work/$name" --set train.steps=8 "$@" >"$work/$name.log" 2>&1 ||
        tail -n 5 "$work/$name.log"
}
losses() { # NAME
    sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),.*/\1 \2/p' "$work/$1/metrics.jsonl"
}
same() { # WHAT ONE OTHER: the same 8 losses, digit for digit.
    losses "$2" >"$work/one"
    losses "$3" >"$work/other"
    if [ "$(wc -l <"$work/one")" -eq 8 ] && cmp -s "$work/one" "$work/other"; then ok "$1"; else not_ok "$1" "$work/other"; fi
}
near() { # WHAT ONE OTHER: 8 losses within a hundredth, and not the same.
    paste <(losses "$2") <(losses "$3") >"$work/pairs"
    if awk '{d = $2 - $4; if ($1 != $3 || d * d > 1e-4 * $2 * $2) bad = 1; if (d) differ = 1}
        END {exit bad || !differ || NR != 8}' "$work/pairs"; then ok "$1"; else not_ok "$1" "$work/pairs"; fi
}

for config in tiny-gpt2 tiny-llama; do
    run $config-plain $config -n 2
    run $config-full $config -n 2 --set activation_checkpointing.mode=full
    run $config-selective $config -n 2 --set activation_checkpointing.mode=selective
    same "$config: full activation checkpointing changes no digit" $config-plain $config-full
    same "$config: selective activation checkpointing changes no digit" $config-plain $config-selective
    run $config-bf16 $config -n 2 --set precision=bf16 --set zero.stage=2
    near "$config: bf16 stays within a hundredth of fp32's losses" $config-plain $config-bf16
    run $config-fp16 $config -n 2 --set precision=fp16 --set zero.stage=3 --set activation_checkpointing.mode=full
    near "$config: so does fp16" $config-plain $config-fp16
    check "$config: generate reads weights in bf16" \
        "$lockstep" generate "$work/$config-bf16/final" --prompt ab --max-tokens 8 --temperature 0
done

# Half of the run, then the other half by new processes.
run half tiny-gpt2 -n 2 --set precision=bf16 --set zero.stage=2 --set checkpoint.every_steps=4
rm -rf "$work/half/checkpoints/step-00000008"
check "a run in bf16 is resumed" "$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/half" --set train.steps=8 \
    --set precision=bf16 --set zero.stage=2 --set checkpoint.every_steps=4 -n 2 --resume
sed -i '/"attempt":1,.*"step":[5-8],/d; /"step":[5-8],"attempt":1,/d' "$work/half/metrics.jsonl"
same "and goes on with the same digits" tiny-gpt2-bf16 half

# Without master weights: four of the eight steps at one stage and rank count, the rest at others.
bare=(--set precision=bf16 --set optimizer.stochastic_rounding=true --set train.reduction=fixed --set checkpoint.every_steps=4
    --set train.micro_batch_size=2)
run bare tiny-gpt2 -n 2 "${bare[@]}" --set zero.stage=1
near "bf16 without master weights stays within a hundredth of fp32's losses" tiny-gpt2-plain bare
cp -r "$work/bare" "$work/bare-again"
rm -rf "$work/bare-again/checkpoints/step-00000008"
check "it is resumed on three ranks at stage 3" "$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/bare-again" \
    --set train.steps=8 "${bare[@]}" --set zero.stage=3 -n 3 --resume
sed -i '/"attempt":1,.*"step":[5-8],/d; /"step":[5-8],"attempt":1,/d' "$work/bare-again/metrics.jsonl"
same "and goes on with the same digits" bare bare-again
check "with the same weights" cmp "$work/bare/final/model.safetensors" "$work/bare-again/final/model.safetensors"
# The master's slices, in the header of a state file.
head -c 4096 "$work/bare/final/state/rank-00000.safetensors" >"$work/header"
if grep -aq '"master:[^"]*": *{"dtype": *"BF16"' "$work/header" && grep -aq '"exp_avg:[^"]*": *{"dtype": *"F32"' "$work/header"; then
    ok "its checkpoints hold the master slices in bf16"
else
    not_ok "its checkpoints hold the master slices in bf16" "$work/header"
fi
# A run changes its mind, twice: the fp32 master is rounded, the bf16 weights are widened.
change() { # WHAT ARGUMENTS...
    local what=$1
    shift
    check "$what" "$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/mind" --set train.steps=8 --set precision=bf16 \
        --set checkpoint.every_steps=3 -n 2 "$@"
}
change "a run with master weights" --set zero.stage=2
rm -r "$work/mind/checkpoints/step-00000006" "$work/mind/checkpoints/step-00000008"
change "goes on without" --set zero.stage=1 --resume --set optimizer.stochastic_rounding=true --accept optimizer.stochastic_rounding
rm -r "$work/mind/checkpoints/step-00000008"
change "and with them again" --set zero.stage=3 --resume --accept optimizer.stochastic_rounding
mkdir "$work/mind-last" # each step as it was trained last
awk -F '"step":' '/"kind":"step"/ {line[$2 + 0] = $0} END {for (i = 1; i <= 8; i++) print line[i]}' \
    "$work/mind/metrics.jsonl" >"$work/mind-last/metrics.jsonl"
near "and stays within a hundredth of fp32's losses" tiny-gpt2-plain mind-last
check "verify finds every sample used once" "$lockstep" verify "$work/mind" --deep

# Other optimizers: they learn, are the same at other stages and rank counts when they go on, and keep no second moment; Muon those of
# what is AdamW's.
for optimizer in '{type: lion, lr: 3.0e-3}' '{type: sgd, lr: 0.5, momentum: 0.9}' '{type: muon, lr: 1.0e-2}'; do
    name=$(sed 's/{type: \([a-z]*\),.*/\1/' <<<"$optimizer")
    more=(--set optimizer="$optimizer" --set train.reduction=fixed --set checkpoint.every_steps=4 --set train.micro_batch_size=2)
    run "$name" tiny-llama -n 2 "${more[@]}" --set zero.stage=2
    losses "$name" >"$work/learned"
    if awk 'NR == 1 {first = $2} {last = $2} END {exit !(NR == 8 && last < first - 0.2)}' "$work/learned"; then
        ok "$name learns"
    else
        not_ok "$name learns" "$work/learned"
    fi
    cp -r "$work/$name" "$work/$name-again"
    rm -r "$work/$name-again/checkpoints/step-00000008"
    check "$name is resumed on one rank at stage 0" "$lockstep" run configs/tiny-llama.yaml --run-dir "$work/$name-again" \
        --set train.steps=8 "${more[@]}" --set zero.stage=0 -n 1 --resume
    sed -i '/"attempt":1,.*"step":[5-8],/d; /"step":[5-8],"attempt":1,/d' "$work/$name-again/metrics.jsonl"
    same "and goes on with the same digits" "$name" "$name-again"
    check "to the same weights" cmp "$work/$name/final/model.safetensors" "$work/$name-again/final/model.safetensors"
    held=$(head -c 65536 "$work/$name/final/state/rank-00000.safetensors" | tr -cd '[:print:]')
    if [ "$name" = muon ] && grep -qF '"exp_avg_sq:model.embed_tokens.weight"' <<<"$held" && ! grep -q '"exp_avg_sq:[^"]*proj.weight"' <<<"$held"; then
        ok "$name keeps second moments of what is AdamW's"
    elif [ "$name" != muon ] && ! grep -qF '"exp_avg_sq:' <<<"$held"; then
        ok "$name keeps no second moment"
    else
        not_ok "$name keeps no second moment"
    fi
done
expect 2 "optimizer.type" "a run does not go on with another optimizer" "$lockstep" run configs/tiny-llama.yaml --run-dir "$work/lion" \
    --set train.steps=9 --accept train.steps --accept optimizer --resume -n 2 --set train.micro_batch_size=2 --set train.reduction=fixed

# Weights of the size of 2 and two targets a step: gradients leave fp16's range at the first loss scale.
overflow=(--set precision=fp16 --set model.initializer_range=2 --set data.sequence_length=1 --set model.max_position_embeddings=1
    --set train.global_batch_size=2 --set train.micro_batch_size=1 --set evaluation.every_steps=0)
run overflow tiny-gpt2 -n 2 "${overflow[@]}"
skipped=$(grep -c '"grad_norm":null,.*"skipped":true' "$work/overflow/metrics.jsonl")
if [ "$skipped" -ge 1 ] && [ "$skipped" -le 7 ] && [ "$(losses overflow | wc -l)" -eq 8 ]; then
    ok "an overflow in fp16 skips updates, and training goes on"
else
    not_ok "an overflow in fp16 skips updates, and training goes on" "$work/overflow/metrics.jsonl"
fi
expect 0 "^updates +$skipped skipped" "verify counts the skipped updates" "$lockstep" verify "$work/overflow"
if grep -q "\"optimizer_steps\": *$((8 - skipped))\b" "$work/overflow/final/trainer.json"; then
    ok "the optimizer's count leaves them out"
else
    not_ok "the optimizer's count leaves them out" "$work/overflow/final/trainer.json"
fi
expect 2 "precision" "an unknown precision is refused" \
    "$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/no" --set precision=fp8
expect 2 "mode: full" "segments without full checkpointing are refused" \
    "$lockstep" run configs/tiny-gpt2.yaml --run-dir "$work/no" --set activation_checkpointing.every=2
