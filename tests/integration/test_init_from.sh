#!/usr/bin/env bash
# model.init_from: runs that start from folders which transformers saved, at several rank counts, ZeRO stages and file types.
source "$(dirname "$0")/lib.sh"
folders=$(realpath tests/reference/transformers)
export OMP_NUM_THREADS=1
cd "$work" || exit 1

# Tokens below 40, which every one of the folders knows, in a headerless file of uint16.
for _ in $(seq 60); do printf '\003\000\001\000\004\000\001\000\005\000\011\000\002\000\006\000\047\000\021\000\036\000'; done >tokens.bin
config() { # FOLDER [MORE MODEL KEYS]
    cat <<YAML
model: {init_from: $1${2:+, $2}}
data: {train: [{path: $work/tokens.bin, dtype: uint16}], sequence_length: 16}
train: {steps: 1, global_batch_size: 4, micro_batch_size: 2}
optimizer: {lr: 0}
lr_schedule: {warmup_steps: 0}
evaluation: {every_steps: 0}
launcher: {threads_per_rank: 1}
device: cpu
YAML
}
logits() { "$lockstep" generate "$1" --prompt-ids 3,1,4,1,5,9,2,6 --max-tokens 1 --temperature 0 --logits "$2"; }

for case in "gpt2 1 0" "gpt2 3 3" "gpt2-untied-bf16 2 1" "llama 2 2" "llama 3 3" "llama-tied-fp16 2 3" "qwen2 2 3" "qwen3-bf16 3 2" "mistral 2 2" "mistral-all 3 1"; do
    read -r name ranks stage <<<"$case"
    config "$folders/$name" >start.yaml
    logits "$folders/$name" theirs >theirs.tokens
    # A step with a learning rate of zero leaves the weights as they came, so the bits of all logits must be the folder's.
    "$lockstep" run start.yaml -n "$ranks" --run-dir "run-$name-$ranks" --set "zero.stage=$stage" >run.log 2>&1 </dev/null ||
        not_ok "a run from $name on $ranks ranks" run.log
    logits "run-$name-$ranks/final" ours >ours.tokens
    check "a run from $name on $ranks ranks at stage $stage has its weights" cmp theirs ours
done
config "$folders/gpt2" >start.yaml
"$lockstep" run start.yaml --run-dir trained --set train.steps=20 --set optimizer.lr=1.0e-2 >run.log 2>&1 </dev/null
logits trained/final trained.logits >/dev/null
logits "$folders/gpt2" theirs >/dev/null
check "with a learning rate they train" bash -c "! cmp -s trained.logits theirs"
loss() { sed -n 's/.*"kind":"step","step":'"$1"',.*"loss":\([0-9.e+-]*\).*/\1/p' trained/metrics.jsonl; }
check "and the loss falls" awk "BEGIN {exit !($(loss 20) + 0 < $(loss 1) - 0.1)}"

# ---- the shape ----

expect 0 "vocab_size: 61" "the shape comes from the folder" "$lockstep" config start.yaml
config "$folders/llama" "num_attention_heads: 6, rms_norm_eps: 1.0e-6" >same.yaml
expect 0 "num_key_value_heads: 2" "keys that are given and equal are taken" "$lockstep" config same.yaml
expect 2 "model.hidden_size: config.json of model.init_from says 20" "another size is refused" \
    "$lockstep" config start.yaml --set model.hidden_size=24
expect 2 "model.model_type: config.json of model.init_from says gpt2" "another family is refused" \
    "$lockstep" config start.yaml --set model.model_type=llama
expect 2 "sequence_length.*48" "a sequence longer than the folder's positions is refused" \
    "$lockstep" config start.yaml --set data.sequence_length=49
expect 2 "model.init_from: .*model_type is not given, and .*config.json" "a folder that is not there is named" \
    "$lockstep" config start.yaml --set model.init_from=/nowhere
# With every key of the shape given, config.json still says what the weights are made for.
config "$folders/llama" >whole.yaml
"$lockstep" config whole.yaml >resolved.yaml
cp -r "$folders/llama" other
sed -i 's/"rope_type": "llama3"/"rope_type": "yarn"/' other/config.json
expect 2 "the rope type 'yarn' is not supported" "other arithmetic is refused, whatever keys are given" \
    "$lockstep" config resolved.yaml --set model.init_from=other
expect 2 "vocab_size is 61, as model.init_from has it, .* 257 token ids. Their ids have to be" "a dataset of another tokenizer is refused" \
    "$lockstep" run start.yaml --run-dir absent --set 'data.train=[{path: "synthetic:2000"}]'
mkdir bin && cp "$folders/gpt2/config.json" bin/ && touch bin/pytorch_model.bin
expect 4 "neither model.safetensors nor model.safetensors.index.json.*save_pretrained" "a folder without safetensors is told what to do" \
    "$lockstep" generate bin --prompt-ids 1
rm other/model-00003-of-00005.safetensors && cp "$folders/llama/config.json" other/
expect 4 "there is no model-00003-of-00005.safetensors, which .* names" "a missing file of several is named" \
    "$lockstep" generate other --prompt-ids 1
cp -r "$folders/gpt2" cache && mv cache/model.safetensors blob && ln -s ../blob cache/model.safetensors
expect 4 "symbolic link.*cp -rL" "a folder of a download cache is told how to copy it" "$lockstep" generate cache --prompt-ids 1
expect 4 "exit 4 .*cp -rL'\$" "a run from one ends with the same words, and goes on in a sentence of its own" bash -c \
    "'$lockstep' run start.yaml --run-dir from-cache --set model.init_from=cache 2>&1 | grep -v '^ ' | sed -n 's/\(cp -rL.\)\. .lockstep run --resume. goes on.*/exit 4 \1/p'; exit \${PIPESTATUS[0]}"
cp -r "$folders/gpt2" here
"$lockstep" run start.yaml --run-dir moved --set model.init_from=here --set train.steps=1 --set checkpoint.every_steps=1 >run.log 2>&1 </dev/null
mv here there
expect 0 "nothing is left to do" "a run that has begun needs the folder no more" \
    "$lockstep" run moved/config.yaml --run-dir moved --resume
cp -r "$folders/gpt2" broken
printf 'X' | dd of=broken/model.safetensors bs=1 seek=3 conv=notrunc status=none
expect 4 "model.safetensors" "weights that cannot be read end the run before its first step" \
    "$lockstep" run start.yaml --run-dir broken-run --set "model.init_from=$work/broken"
sed -i 's/"n_embd": 20/"n_embd": 9000000/' broken/config.json
expect 2 "9000000 for model.hidden_size, allowed: an integer from 1 to" "a size out of range is refused" \
    "$lockstep" config start.yaml --set "model.init_from=$work/broken"
