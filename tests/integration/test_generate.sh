#!/usr/bin/env bash
# lockstep generate: folders that transformers saved, what is refused, and that a seed repeats itself.
. "$(dirname "$0")/lib.sh"
folders=tests/reference/transformers
export OMP_NUM_THREADS=1

if command -v python3 >/dev/null; then
    python3 tests/reference/transformers_roundtrip.py stored "$lockstep" >"$work/stored.log" 2>&1
    for name in gpt2 gpt2-untied-bf16 llama llama-tied-fp16 qwen2 qwen3-bf16 mistral mistral-all; do
        if grep -q "^$name: same greedy tokens" "$work/stored.log"; then
            ok "the folder $name that transformers saved gives its greedy tokens and logits"
        else
            not_ok "the folder $name that transformers saved gives its greedy tokens and logits" "$work/stored.log"
        fi
    done
else
    skip "folders that transformers saved give their greedy tokens" "python3 is missing"
fi

ids() { "$lockstep" generate "$folders/$1" --prompt-ids 3,1,4,1,5 --max-tokens "$2" "${@:3}"; }

ids gpt2 12 --seed 7 >"$work/a" && ids gpt2 12 --seed 7 >"$work/b" && ids gpt2 12 --seed 8 >"$work/c"
check "the same seed gives the same tokens" cmp "$work/a" "$work/b"
if cmp -s "$work/a" "$work/c"; then not_ok "another seed gives other tokens"; else ok "another seed gives other tokens"; fi
# 61 tokens, window 48: 5 + 100 tokens go beyond it.
ids gpt2 100 --temperature 0 >"$work/long"
if [ "$(tr , '\n' <"$work/long" | grep -c .)" -eq 105 ]; then ok "text goes on beyond the window"; else not_ok "text goes on beyond the window" "$work/long"; fi
head -c 30 "$work/long" >"$work/long.head"
ids gpt2 20 --temperature 0 | head -c 30 >"$work/short.head"
check "a longer text begins like a shorter one" cmp "$work/long.head" "$work/short.head"

expect 2 "give either --prompt or --prompt-ids" "a call without a prompt is a usage error" "$lockstep" generate $folders/gpt2
expect 2 "FOLDER" "a call without a folder is a usage error" "$lockstep" generate --prompt x
expect 2 "needs the tokenizer of .*--prompt-ids" "text for a folder without a tokenizer is refused" "$lockstep" generate $folders/gpt2 --prompt x
expect 2 "'61' where a token id from 0 to 60" "a token id beyond the vocabulary is refused" \
    "$lockstep" generate $folders/gpt2 --prompt-ids 60,61
expect 2 "token id" "an empty list of ids is refused" "$lockstep" generate $folders/gpt2 --prompt-ids ""
expect 2 "temperature" "a negative temperature is refused" \
    "$lockstep" generate $folders/gpt2 --prompt-ids 1 --temperature -1
expect 2 "max-tokens" "a number of tokens that is none is refused" \
    "$lockstep" generate $folders/gpt2 --prompt-ids 1 --max-tokens many
expect 4 "config.json.*runs/NAME/final" "a folder without a model is a checkpoint error" "$lockstep" generate "$work" --prompt x
expect 4 "runs/NAME/final" "a folder that is not there is a checkpoint error" \
    "$lockstep" generate "$work/none" --prompt-ids 1

cp -r $folders/llama "$work/llama"
sed -i 's/"attention_bias": false/"attention_bias": true/' "$work/llama/config.json"
expect 4 "attention_bias" "a feature that is not computed is refused by name" "$lockstep" generate "$work/llama" --prompt-ids 1
cp $folders/llama/config.json "$work/llama/config.json"
rm "$work/llama/model-00002-of-00005.safetensors"
expect 4 "model-00002-of-00005" "a missing weight file is named" "$lockstep" generate "$work/llama" --prompt-ids 1
ln -s "$PWD/$folders/llama/model-00002-of-00005.safetensors" "$work/llama/model-00002-of-00005.safetensors"
expect 4 "symbolic link" "a weight file that is a link out of the folder is refused" \
    "$lockstep" generate "$work/llama" --prompt-ids 1
sed -i 's/model-00002-of-00005/..\/model-00002-of-00005/' "$work/llama/model.safetensors.index.json"
expect 4 "\.\./model-00002" "an index that leaves the folder is refused" "$lockstep" generate "$work/llama" --prompt-ids 1
cp -r $folders/gpt2 "$work/gpt2"
truncate -s -1 "$work/gpt2/model.safetensors"
expect 4 "damaged" "a truncated weight file is refused" "$lockstep" generate "$work/gpt2" --prompt-ids 1
