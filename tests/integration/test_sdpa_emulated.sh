#!/usr/bin/env bash
# Attention by cuDNN in the CUDA worker, over a stand-in that executes the very graph it is given (tests/standin/cudnn*.c): it is used
# where it is right, faster and deterministic, and whatever is wrong with it our own kernels serve and the log says why.
. "$(dirname "$0")/lib.sh"
if ! make -s -j2 emulated >"$work/make.log" 2>&1; then
    not_ok "the emulated worker builds" "$work/make.log"
    exit 1
fi
emulated=build/emulator/lockstep
if [ ! -x $emulated ] || [ ! -e build/emulator/lib/libcudnn.so.9 ]; then
    skip "attention by cuDNN, emulated" "the headers of CUDA or cuDNN are not here"
    exit
fi
export OMP_NUM_THREADS=1 LOCKSTEP_CUDA_LIBRARIES=$PWD/build/emulator/lib
steps=3
cat >"$work/gpt2.yaml" <<END
model: {model_type: gpt2, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 257}
data: {train: [{path: "synthetic:4000"}], sequence_length: 16, document_mask: false}
train: {steps: $steps, global_batch_size: 4, micro_batch_size: 2}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
precision: bf16
device: cuda
END
# Two queries' heads share a key-value head; lengths that are no multiple of anything; the last micro-batch of some ranks is smaller.
cat >"$work/llama.yaml" <<END
model: {model_type: llama, hidden_size: 32, intermediate_size: 40, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 257}
data: {train: [{path: "synthetic:4000"}], sequence_length: 13, document_mask: false}
train: {steps: $steps, global_batch_size: 10, micro_batch_size: 3}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
precision: bf16
device: cuda
END

if make -s build/emulator/tests/emulated/sdpa >"$work/make.log" 2>&1; then
    check "in pieces of sequences and of heads, and for fewer sequences, it agrees with our kernels" \
        env LS_TEST_DEVICE=cuda LS_STANDIN_DEVICES=1 build/emulator/tests/emulated/sdpa
else
    not_ok "the test of pieces builds" "$work/make.log"
fi

train() { # NAME MODEL RANKS ARGUMENTS...
    local name=$1 model=$2 ranks=$3
    shift 3
    LS_STANDIN_CUDNN_LOG=$work/$name.executions LS_STANDIN_DEVICES=$ranks timeout 120 $emulated run "$work/$model.yaml" -n "$ranks" \
        --run-dir "$work/$name" "$@" >"$work/$name.log" 2>&1
}
numbers() {
    sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),"grad_norm":\([-0-9.e]*\),.*/\1 \2 \3/p' "$work/$1/metrics.jsonl"
}
weights() { echo "$work/$1"/final/model.safetensors; }
# Losses and gradient norms of every step differ by less than 1e-3 of their value. Between bf16 on a CPU and on a GPU one of a few
# hundred numbers is off by 2^-8 where a sum lies between two neighbours; probabilities rounded to bf16 in front of a product
# add errors of 2^-9 each, which average out over the keys and channels.
agrees() { # WHAT A B
    paste -d ' ' <(numbers "$2") <(numbers "$3") | awk -v steps=$steps '
        function apart(a, b) { return a > b ? (a - b) / a : (b - a) / b }
        $1 != $4 || NF != 6 || apart($2, $5) > 1e-3 || apart($3, $6) > 1e-3 { bad = 1 }
        { if (apart($2, $5) > worst) worst = apart($2, $5); if (apart($3, $6) > worst) worst = apart($3, $6) }
        END { print "worst difference", worst; exit bad || NR != steps }' >"$work/agrees.log"
    if [ $? -eq 0 ]; then ok "$1 ($(cat "$work/agrees.log"))"; else not_ok "$1: $(cat "$work/agrees.log")" "$work/$3.log"; fi
}
executions() { awk '{ f += $2; b += $4 } END { print f + 0, b + 0 }' "$work/$1.executions"; }
# What rank 0's comparison executes: six forwards and eleven backwards of one micro-batch (each five times to be measured).
# executed WHAT NAME FORWARDS BACKWARDS: of training, all ranks together.
executed() {
    local expected="$(($3 + 6)) $(($4 + 11))"
    if [ "$(executions "$2")" = "$expected" ]; then ok "$1"; else not_ok "$1: $(executions "$2"), not $expected" "$work/$2.log"; fi
}

for model in gpt2 llama; do
    train cpu-$model $model 1 --set device=cpu || not_ok "$model on a CPU" "$work/cpu-$model.log"
done
# 2 layers, 3 steps, 4 sequences in pairs.
train gpt2-1 gpt2 1 --set checkpoint.every_steps=1 --set checkpoint.keep=3
agrees "gpt2 with attention by cuDNN agrees with a CPU" cpu-gpt2 gpt2-1
executed "every attention of its training was cuDNN's" gpt2-1 12 12
train gpt2-4 gpt2 4 --set train.micro_batch_size=1 --set zero.stage=3 --set activation_checkpointing.mode=full
agrees "on 4 ranks at stage 3 with activations computed again too" cpu-gpt2 gpt2-4
executed "and forward again for each backward but the last layer's" gpt2-4 36 24
# 10 sequences: 3 + 3 + 3 + 1 on one rank, 3 + 2 on each of two. A micro-batch of three is one execution, others one a sequence.
train llama-1 llama 1
agrees "llama with shared key-value heads agrees with a CPU" cpu-llama llama-1
executed "a smaller micro-batch goes sequence by sequence" llama-1 24 24
train llama-2 llama 2 --set zero.stage=2
agrees "on 2 ranks at stage 2 too" cpu-llama llama-2
executed "smaller ones on both ranks too" llama-2 36 36
line="by cuDNN [0-9.]+ where a micro-batch has no document boundary, engine 4; it differs from our kernels by"
for direction in forward backward; do
    check "the log says which engine has the $direction, how far off it is and what it takes; the first, nondeterministic, is passed over" bash -c \
        "grep -qE 'attention: $direction $line' '$work/llama-2/logs/rank-00000.log' && grep -qE '$direction by cuDNN [0-9.]+ ms, by our kernels' '$work/llama-2/logs/rank-00000.log'"
done
check "and named, with its place among the proposals" grep -q "the backward of cuDNN by engine 4, .* proposal 2 of 3; not taken because they are not deterministic: 3$" \
    "$work/llama-2/logs/rank-00000.log"

LS_STANDIN_ORDER=lazy LS_STANDIN_GUARD=1 train lazy gpt2 1
check "late streams give the same bits, and the host touches no device memory" cmp "$(weights gpt2-1)" "$(weights lazy)"

# Documents of about four sequences: most micro-batches of two have no boundary, some have one and are our kernels'.
for i in $(seq 40); do printf '{"text": "%s"}\n' "$(printf 'document %d says %d times that ' "$i" $((i * i)) | head -c $((20 + i)))"; done >"$work/documents.jsonl"
"$lockstep" data prepare "$work/documents.jsonl" -o "$work/text" >"$work/prepare.log" 2>&1 || not_ok "documents" "$work/prepare.log"
of_documents=(--set data.document_mask=true --set "data.train=[{path: $work/text/train}]")
train documents gpt2 1 "${of_documents[@]}"
train cpu-documents gpt2 1 "${of_documents[@]}" --set device=cpu
agrees "with document boundaries in some micro-batches it agrees with a CPU" cpu-documents documents
read -r forwards backwards <<<"$(executions documents)"
if [ "$forwards" -gt 6 ] && [ "$forwards" -lt 18 ] && [ $((forwards - 6)) = $((backwards - 11)) ]; then
    ok "only micro-batches without a boundary are cuDNN's ($((forwards - 6)) of 12 forwards)"
else
    not_ok "only micro-batches without a boundary are cuDNN's: $forwards, $backwards" "$work/documents.log"
fi

# reduction: fixed decides without a clock: right is enough.
LS_STANDIN_CUDNN=slow train fixed-1 gpt2 1 --set train.reduction=fixed
train fixed-2 gpt2 2 --set train.reduction=fixed --set zero.stage=3
check "reduction: fixed uses it without measuring, on 1 GPU and on 2 with the same weights" cmp "$(weights fixed-1)" "$(weights fixed-2)"
check "there is no time in its log" bash -c "grep -qE 'attention: backward $line' '$work/fixed-1/logs/rank-00000.log' && ! grep -q 'attention of .* ms' '$work/fixed-1/logs/rank-00000.log'"

# What was measured is kept with the run. A resumed one uses it: cuDNN, though it is slow now, and with it the bits of a run that never
# stopped. It is not used once damaged, or on another GPU, where the slow cuDNN is measured and passed over.
resume() { # NAME FAULT VARIABLES...; of the run that FROM names
    local name=$1 fault=$2
    shift 2
    rm -rf "$work/$name"
    cp -a "$work/${FROM:-gpt2-1}" "$work/$name"
    rm -rf "$work/$name"/{checkpoints/step-00000003,final,logs}
    [ "$fault" = none ] || printf x | dd of="$work/$name/choices" bs=1 seek=100 conv=notrunc status=none
    env LS_STANDIN_CUDNN=slow LS_STANDIN_DEVICES=1 "$@" timeout 120 $emulated run "$work/gpt2.yaml" -n 1 --run-dir "$work/$name" \
        --set checkpoint.every_steps=1 --set checkpoint.keep=3 --resume >"$work/$name.log" 2>&1
}
resume resumed none
check "a resumed run computes as its first attempt chose" grep -q "computed as the run's first attempt chose" "$work/resumed/logs/rank-00000.log"
check "and has the weights of a run that never stopped" cmp "$(weights gpt2-1)" "$(weights resumed)"
resume damaged byte
check "damaged choices are said to be, and made again" bash -c "grep -q 'choices is damaged' '$work/damaged/logs/rank-00000.log' && grep -q 'takes longer' '$work/damaged/logs/rank-00000.log'"
resume other-gpu none LS_STANDIN_NAME='Another GPU'
check "those of another GPU are made again" grep -q "attention: forward by our own kernels; cuDNN .* takes longer" "$work/other-gpu/logs/rank-00000.log"

# Whatever is wrong with it: a line in the log, and the weights of our own kernels.
fallback() { # FAULT TEXT WHAT
    LS_STANDIN_CUDNN=$1 train "fault-$1" gpt2 1 --set train.steps=1 --set train.global_batch_size=2
    if grep -qE "attention: (forward by )?our own kernels; $2" "$work/fault-$1/logs/rank-00000.log" && cmp -s "$(weights fault-old)" "$(weights "fault-$1")"; then
        ok "$3: the log says so and our kernels serve"
    else
        not_ok "$3: the log says so and our kernels serve" "$work/fault-$1.log"
    fi
}
fallback old "cuDNN 9.9.0 is too old" "a library that is too old"
fallback uncreated "cudnnCreate of .* answered 1001" "a library that does not start"
fallback refuse "the graph answered 3000, CUDNN_STATUS_NOT_SUPPORTED" "a graph that is refused"
fallback none "the forward has no engine for it: 0 proposed" "no engine"
fallback nondeterministic "the forward has no engine for it: 3 proposed, 3 of them not deterministic \([0-9]+, 4, [0-9]+\), " "engines that are not deterministic"
fallback hungry "the forward has no engine for it: .* workspace of at least 1099511627776 bytes" "an engine that needs too much memory"
fallback wrong "the output of cuDNN .* differs from ours" "one key too many for each query"
fallback slow "cuDNN .* takes longer" "a slow engine"

# What is wrong with the backward alone leaves it the forward: ours takes its results.
mixed() { # FAULT TEXT FORWARDS BACKWARDS WHAT
    LS_STANDIN_CUDNN=$1 train "mixed-$1" gpt2 1 --set checkpoint.every_steps=1 --set checkpoint.keep=3
    local log=$work/mixed-$1/logs/rank-00000.log
    if grep -qE "attention: forward $line" "$log" && grep -qE "attention: backward by our own kernels; $2" "$log" &&
        [ "$(executions "mixed-$1")" = "$3 $4" ]; then
        ok "$5: the forward alone is cuDNN's, and the log says so"
    else
        not_ok "$5: the forward alone is cuDNN's, and the log says so ($(executions "mixed-$1"))" "$work/mixed-$1.log"
    fi
    agrees "and it agrees with a CPU" cpu-gpt2 "mixed-$1"
}
mixed wrong-gradient "the gradient of queries of cuDNN .* differs from ours" 18 1 "a wrong gradient"
mixed unsteady "the gradient of .* of cuDNN .* has other bits each time" 18 2 "a backward that says it is deterministic, and is not"
mixed slow-backward "cuDNN .* takes longer" 18 11 "a slow backward"
FROM=mixed-slow-backward resume mixed-resumed none LS_STANDIN_CUDNN=
check "a resumed run goes on with cuDNN's forward alone, and has the same weights" cmp "$(weights mixed-slow-backward)" "$(weights mixed-resumed)"
check "though its backward is not slow any more" grep -q "computed as the run's first attempt chose" "$work/mixed-resumed/logs/rank-00000.log"

# The real library, if it is on this machine, finds no driver; where it is not, it cannot be opened.
mkdir "$work/folder" && ln -s "$PWD"/build/emulator/lib/lib{cublasLt,nvidia-ml,nccl}* "$work/folder"
LOCKSTEP_CUDA_LIBRARIES=$work/folder train without gpt2 1 --set train.steps=1 --set train.global_batch_size=2
check "without the stand-in: the log says so and our kernels serve" bash -c "cmp '$(weights fault-old)' '$(weights without)' &&
    grep -qE 'attention: (forward by )?our own kernels; (cudnnCreate of|device: libcudnn.so.9 cannot be opened)' '$work/without/logs/rank-00000.log'"

# One rank that cannot: none does. A launch that fails later: our kernels from there on.
LS_STANDIN_CUDNN=other:1 train one-rank gpt2 2 --set train.steps=1 --set train.global_batch_size=4
check "where one rank of two has other engines, training goes on" test -e "$(weights one-rank)"
check "that rank says so" grep -q "attention: our own kernels; the library's proposal 1 is engine 14 here, 4 was chosen" "$work/one-rank/logs/rank-00001.log"
executed "and no rank uses cuDNN" one-rank 0 0
LS_STANDIN_CUDNN=failing train failing gpt2 1
agrees "a launch that fails in training does not end it" cpu-gpt2 failing
check "and the log says so" grep -q "answered 5000, .* in attention that it computed before.*They serve from now on" "$work/failing/logs/rank-00000.log"

# A kernel's fault shows in the call behind it: of as many launches in a row as a layer has, one stands in front of attention.
laid=''
for launch in 56 57 58 59 60 61 62 63 64 65; do
    LS_STANDIN_FAULT=$launch train fault-$launch llama 1 --set train.reduction=fixed --set fault.max_restarts=0 || true
    laid+=$(grep -hoE 'failed at attention, or a kernel before it: cudaErrorIllegalAddress|cuDNN [0-9.]+ answered|steps +3 of 3' "$work/fault-$launch.log" | sort -u)
done
if [[ $laid == *'failed at attention'* && $laid != *answered* && $laid != *'of 3'* ]]; then
    ok "a kernel's fault in front of attention is not laid to cuDNN"
else
    not_ok "a kernel's fault in front of attention is not laid to cuDNN ($laid)" "$work/fault-60.log"
fi
exit 0
