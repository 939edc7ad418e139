#!/usr/bin/env bash
# Products of matrices on CUDA devices, over a stand-in for cuBLASLt (tests/standin/standin.h): what the library proposes and then
# refuses goes another way, what is measured is measured alike, and what was not measured is told.
. "$(dirname "$0")/lib.sh"
if ! make -s -j2 emulated >"$work/make.log" 2>&1; then
    not_ok "the emulated worker builds" "$work/make.log"
    exit 1
fi
emulated=build/emulator/lockstep
if [ ! -x $emulated ]; then
    skip "products on CUDA devices, emulated" "CUDA's headers are not here (nvcc was not found)"
    exit
fi
export OMP_NUM_THREADS=1 LOCKSTEP_CUDA_LIBRARIES=$PWD/build/emulator/lib LS_STANDIN_ORDER=eager
steps=2
# Of 17 channels, 68 inside, rows begin at multiples of 4 elements and no more.
for channels in 17 40; do
    cat >"$work/gpt2-$channels.yaml" <<END
model: {model_type: gpt2, hidden_size: $channels, num_hidden_layers: 3, num_attention_heads: 1, vocab_size: 257}
data: {train: [{path: "synthetic:4000"}], sequence_length: 16}
train: {steps: $steps, global_batch_size: 4, micro_batch_size: 2}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
device: cuda
END
done
train() { # NAME MODEL RANKS ARGUMENTS...
    local name=$1 model=$2 ranks=$3
    shift 3
    LS_STANDIN_DEVICES=$ranks timeout 120 $emulated run "$work/$model.yaml" -n "$ranks" --run-dir "$work/$name" "$@" >"$work/$name.log" 2>&1
}
numbers() {
    sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),"grad_norm":\([-0-9.e]*\),.*/\1 \2 \3/p' "$work/$1/metrics.jsonl"
}
# agrees WHAT A B LIMIT: see test_cuda_emulated.sh.
agrees() {
    paste -d ' ' <(numbers "$2") <(numbers "$3") | awk -v limit="$4" -v steps=$steps '
        function apart(a, b) { return a > b ? (a - b) / a : (b - a) / b }
        $1 != $4 || NF != 6 || apart($2, $5) > limit || apart($3, $6) > limit { bad = 1 }
        { if (apart($2, $5) > worst) worst = apart($2, $5); if (apart($3, $6) > worst) worst = apart($3, $6) }
        END { print "worst difference", worst; exit bad || NR != steps }' >"$work/agrees.log"
    if [ $? -eq 0 ]; then ok "$1 ($(cat "$work/agrees.log"))"; else not_ok "$1: $(cat "$work/agrees.log")" "$work/$3.log"; fi
}
weights() { echo "$work/$1/final/model.safetensors"; }
says() { # WHAT NAME PATTERN
    if grep -qE "$3" "$work/$2"/logs/rank-*.log; then ok "$1"; else not_ok "$1" "$work/$2/logs/rank-00000.log"; fi
}
silent() { # WHAT NAME PATTERN
    if [ ! -e "$work/$2/logs/rank-00000.log" ] || grep -qE "$3" "$work/$2"/logs/rank-*.log; then not_ok "$1" "$work/$2/logs/rank-00000.log"; else ok "$1"; fi
}
for case in gpt2-17:fp32 gpt2-40:fp32 gpt2-40:bf16; do
    IFS=: read -r model precision <<<"$case"
    train cpu-$model-$precision $model 1 --set device=cpu --set precision=$precision || not_ok "$model on a CPU" "$work/cpu-$model-$precision.log"
done

# Every way that has an epilogue is refused when it is to run. Sums are rounded to bf16 once more then.
LS_STANDIN_CUBLASLT=late train late gpt2-40 2 --set precision=bf16
agrees "epilogues that are proposed and refused are kernels of their own" cpu-gpt2-40-bf16 late 1e-3
says "and the log says so" late "proposes ways with its epilogue and answers 15 to them; it goes without"
check "on the rank that measures, the other one takes its choice" bash -c "! grep -q 'goes without' '$work/late/logs/rank-00001.log'"
LS_STANDIN_CUBLASLT=late train late-fixed-1 gpt2-40 1 --set precision=bf16 --set train.reduction=fixed
LS_STANDIN_CUBLASLT=late train late-fixed-2 gpt2-40 2 --set precision=bf16 --set train.reduction=fixed --set zero.stage=3
agrees "where nothing is measured, in the step as well" cpu-gpt2-40-bf16 late-fixed-1 1e-3
check "with the same weights on 1 GPU and on 2" cmp "$(weights late-fixed-1)" "$(weights late-fixed-2)"

# The first way is refused.
LS_STANDIN_CUBLASLT=first train first gpt2-40 1
agrees "a first proposal that is refused is not chosen" cpu-gpt2-40-fp32 first 2e-6
says "the second or third is" first "ms by way [23] of 3, none by the first"
LS_STANDIN_CUBLASLT=first train first-fixed gpt2-40 1 --set train.reduction=fixed
agrees "and gives way to the next where nothing is measured" cpu-gpt2-40-fp32 first-fixed 2e-6
says "which the log says" first-fixed "answered 15, by its proposal 2 of 3 it runs"

# Rows of aux that begin at multiples of 4 elements are not the library's.
LS_STANDIN_CUBLASLT=gelu train gelu gpt2-17 1
agrees "the derivative of GELU in fp32 with rows of 68 elements" cpu-gpt2-17-fp32 gelu 2e-6
silent "is not asked of the library" gelu "answered|goes without"
LS_STANDIN_CUBLASLT=gelu train gelu-40 gpt2-40 1
agrees "with rows of 160 it is" cpu-gpt2-40-fp32 gelu-40 2e-6

# The gradient of a bias: what the library does is compared with a product and a kernel. The kernel is slow here, being emulated.
train with-it gpt2-40 2 --set precision=bf16
agrees "gradients of biases that the library adds up beside products" cpu-gpt2-40-bf16 with-it 1e-3
says "which the log says" with-it "the bias's gradient with it: .* ms by way"
silent "and has found them right" with-it "adds up a bias's gradient to"
LS_STANDIN_CUBLASLT=short-sums train short gpt2-40 2 --set precision=bf16
agrees "where it leaves a number out our kernel adds them up" cpu-gpt2-40-bf16 short 1e-3
says "and the log says why" short "adds up a bias's gradient to [-0-9.]+, our kernel to [-0-9.]+ .*; it goes without"
LS_STANDIN_CUBLASLT=slow-sums train after-it gpt2-40 2 --set precision=bf16
agrees "or a kernel after them, where the library is slow" cpu-gpt2-40-bf16 after-it 1e-3
says "of both the log has the time" after-it "the bias's gradient after it: .* ms by way"
silent "slow ones are not looked at further" after-it "adds up a bias's gradient to"

# GELU's derivative likewise.
LS_STANDIN_CUBLASLT=quick-gelu train quick gpt2-40 2 --set precision=bf16
agrees "GELU's derivative by the library" cpu-gpt2-40-bf16 quick 1e-3
says "is measured with a product" quick "GELU's derivative with it: .* ms by way"
says "and after it" quick "GELU's derivative after it: .* ms by way"
silent "and has been found right" quick "GELU's derivative by cuBLASLt"
LS_STANDIN_CUBLASLT=coarse-gelu train coarse gpt2-40 2 --set precision=bf16
agrees "where it is a twentieth too large it is our kernel's" cpu-gpt2-40-bf16 coarse 1e-3
says "and the log says why" coarse "GELU's derivative by cuBLASLt .* differs from our kernel's by 0.0[45][0-9]* of the norm .*; it goes without"
LS_STANDIN_CUBLASLT=slow-gelu train gelu-after-it gpt2-40 2 --set precision=bf16
agrees "or a kernel after the product, where the library is slow" cpu-gpt2-40-bf16 gelu-after-it 1e-3
says "of both the log has the time" gelu-after-it "GELU's derivative after it: .* ms by way"
silent "a slow one is not looked at further" gelu-after-it "GELU's derivative by cuBLASLt"

LS_STANDIN_CUBLASLT=coarse-gelu train unseen gpt2-40 1 --set precision=bf16 --set train.reduction=fixed
agrees "where nothing is measured nothing is left to the library unseen" cpu-gpt2-40-bf16 unseen 1e-3

# One layer and the head are gone through before the first step.
train measured gpt2-40 1 --set precision=bf16 --set zero.stage=2
says "the products of a layer are measured" measured "product 32 x 160 x 40: .* ms by way"
silent "and so are all those of its steps" measured "was not measured"
train smaller gpt2-40 1 --set precision=bf16 --set train.global_batch_size=3
says "a product of another size than those measured is told" smaller "product 16 x .* was not measured"

# The clock of a GPU that was idle rises: what is measured first is slow. The first way is the fastest one of all products.
LS_STANDIN_CUBLASLT=rising train rising gpt2-40 1 --set train.steps=1
says "the first way is the fastest" rising "ms by way 1 of 3"
silent "also of the products that are measured first, on a clock that rises" rising "ms by way [23] of 3"

# A vocabulary of 257 makes the head's three products odd. Behind the table of tokens is that of positions: there is room for 264.
LS_STANDIN_CUBLASLT=odd train odd gpt2-40 2 --set precision=bf16
agrees "products that are slow unless they are of multiples of 16 bytes" cpu-gpt2-40-bf16 odd 1e-3
for product in "32 x 257 x 40:32 x 264 x 40" "257 x 40 x 32:264 x 40 x 32" "32 x 40 x 257:32 x 40 x 264"; do
    says "are made so where there is room: ${product#*:}" odd "product ${product%:*}: .* ms as one of ${product#*:}, which is taken"
done
silent "and are what the steps are made of" odd "was not measured"
LS_STANDIN_CUBLASLT=odd train odd-again gpt2-40 2 --set precision=bf16 --set train.steps=1
LS_STANDIN_CUBLASLT=odd train odd-again gpt2-40 2 --set precision=bf16 --resume --accept train.steps
agrees "a resumed run keeps to them" odd odd-again 0
check "without measuring again" test "$(cat "$work"/odd-again/logs/rank-00000.log* | grep -c 'as one of')" = 3
train even gpt2-40 1 --set precision=bf16 --set model.vocab_size=264
silent "a vocabulary that is even has nothing to spare" even "as one of"
train untied gpt2-40 1 --set precision=bf16 --set model.tie_word_embeddings=false
silent "nor has a head of its own, behind which only a norm is" untied "as one of"

# Nothing runs.
expect 1 "cublasLtMatmul of .* answered 15 for a product of" "a library that runs nothing ends the run and is named" \
    env LS_STANDIN_CUBLASLT=dead LS_STANDIN_DEVICES=1 $emulated run "$work/gpt2-40.yaml" -n 1 --run-dir "$work/dead"
exit 0
