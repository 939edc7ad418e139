#!/usr/bin/env bash
# The whole CUDA worker on CPUs: emulated kernels under stand-ins for CUDA's runtime and libraries (tests/standin/standin.h). It agrees
# with the CPU device, gives the same bits in every order of streams, keeps to its plan of memory, and says what is wrong with GPUs.
. "$(dirname "$0")/lib.sh"
: "${LS_TEST_LONG:=0}"
if ! make -s -j2 emulated >"$work/make.log" 2>&1; then
    not_ok "the emulated worker builds" "$work/make.log"
    exit 1
fi
emulated=build/emulator/lockstep
if [ ! -x $emulated ]; then
    skip "the CUDA worker, emulated" "CUDA's headers are not here (nvcc was not found)"
    exit
fi
export OMP_NUM_THREADS=1 LOCKSTEP_CUDA_LIBRARIES=$PWD/build/emulator/lib LS_STANDIN_DEVICES=4
steps=3
cat >"$work/gpt2.yaml" <<END
model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 257}
data: {train: [{path: "synthetic:4000"}], sequence_length: 16}
train: {steps: $steps, global_batch_size: 4, micro_batch_size: 1}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
device: cuda
END
cat >"$work/llama.yaml" <<END
model: {model_type: llama, hidden_size: 24, intermediate_size: 40, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 257}
data: {train: [{path: "synthetic:4000"}], sequence_length: 13}
train: {steps: $steps, global_batch_size: 5, micro_batch_size: 2}
optimizer: {lr: 1.0e-3}
launcher: {threads_per_rank: 1}
device: cuda
END

sed 's/model_type: llama,/model_type: mistral, sliding_window: 5,/' "$work/llama.yaml" >"$work/mistral.yaml"

if make -s build/emulator/tests/unit/test_device >"$work/make.log" 2>&1; then
    check "streams, events, errors and memory of the device keep their contracts" env LS_TEST_DEVICE=cuda LS_STANDIN_DEVICES=1 build/emulator/tests/unit/test_device
else
    not_ok "the device's test builds" "$work/make.log"
fi

train() { # NAME MODEL RANKS STAGE PRECISION ARGUMENTS...
    local name=$1 model=$2 ranks=$3 stage=$4 precision=$5 devices=$3
    shift 5
    [ "$ranks" = 1 ] && devices=1
    LS_STANDIN_DEVICES=${devices_shown:-$devices} timeout 120 $emulated run "$work/$model.yaml" -n "$ranks" --run-dir "$work/$name" \
        --set zero.stage="$stage" --set precision="$precision" "$@" >"$work/$name.log" 2>&1
}
# Step, loss and norm; of a step that ran again, the last ones.
numbers() {
    sed -n 's/.*"kind":"step","step":\([0-9]*\),.*"loss":\([-0-9.e]*\),"grad_norm":\([-0-9.e]*\),.*/\1 \2 \3/p' "$work/$1/metrics.jsonl" |
        awk '{ line[$1] = $0 } END { for (step = 1; step in line; step++) print line[step] }'
}
weights() { echo "$work/$1/checkpoints/step-0000000$steps/model.safetensors"; }
# agrees WHAT A B LIMIT: losses and gradient norms of every step differ by less than LIMIT of their value.
agrees() {
    paste -d ' ' <(numbers "$2") <(numbers "$3") | awk -v limit="$4" -v steps=$steps '
        function apart(a, b) { return a > b ? (a - b) / a : (b - a) / b }
        $1 != $4 || NF != 6 || apart($2, $5) > limit || apart($3, $6) > limit { bad = 1 }
        { if (apart($2, $5) > worst) worst = apart($2, $5); if (apart($3, $6) > worst) worst = apart($3, $6) }
        END { print "worst difference", worst; exit bad || NR != steps }' >"$work/agrees.log"
    if [ $? -eq 0 ]; then ok "$1 ($(cat "$work/agrees.log"))"; else not_ok "$1: $(cat "$work/agrees.log")" "$work/$3.log"; fi
}
same() { check "$1" cmp "$(weights "$2")" "$(weights "$3")"; }

# fp32: each number comes of a few hundred sums of a few hundred terms; each loses up to 2^-24 = 6e-8 of its value, in either
# direction, and sqrt(1000) of them are 2e-6. bf16: both devices round at the same places, and differ where
# a sum in fp32 lies so near the middle of two neighbours that the order decides; one number of a few hundred is off by 2^-8 then,
# and 2^-8 / sqrt(300) = 2e-4 of the whole; 1e-3 leaves room for a few.
declare -A limit=([fp32]=2e-6 [bf16]=1e-3)
for model in gpt2 llama; do for precision in fp32 bf16; do
    train cpu-$model-$precision $model 1 0 $precision --set device=cpu || not_ok "$model on CPUs in $precision" "$work/cpu-$model-$precision.log"
done; done
cases="gpt2:1:0:fp32 gpt2:2:1:fp32 gpt2:4:3:fp32 gpt2:2:2:bf16 llama:1:0:bf16 llama:4:0:bf16 llama:2:3:bf16 llama:4:2:fp32"
if [ "$LS_TEST_LONG" = 1 ]; then
    cases=$(for m in gpt2 llama; do for p in fp32 bf16; do for r in 1 2 4; do for s in 0 1 2 3; do echo "$m:$r:$s:$p"; done; done; done; done)
fi
for case in $cases; do
    IFS=: read -r model ranks stage precision <<<"$case"
    train "$case" "$model" "$ranks" "$stage" "$precision" || true
    agrees "$model at stage $stage on $ranks emulated GPUs in $precision agrees with a CPU" "cpu-$model-$precision" "$case" "${limit[$precision]}"
done
train fp16 gpt2 2 1 fp16 && train cpu-fp16 gpt2 2 1 fp16 --set device=cpu
agrees "gpt2 at stage 1 on 2 emulated GPUs in fp16 agrees with CPUs" cpu-fp16 fp16 1e-3

# Streams run as late as they may, or early where others depend on them: the same bits, or a wait is missing.
LS_STANDIN_ORDER=lazy train lazy-zero3 llama 2 3 bf16
same "lazy streams give the bits of eager ones at stage 3" llama:2:3:bf16 lazy-zero3
LS_STANDIN_ORDER=hasty train hasty-zero3 llama 2 3 bf16
same "hasty ones too" llama:2:3:bf16 hasty-zero3
LS_STANDIN_ORDER=lazy train lazy-zero1 gpt2 2 1 fp32 --set activation_checkpointing.mode=selective --set zero.gradient_dtype=bf16
train eager-zero1 gpt2 2 1 fp32 --set zero.gradient_dtype=bf16
same "with gradients sent in bf16 and activations computed again too" eager-zero1 lazy-zero1

# The check above can fail: of the waits of a step, one after another left out, some must show. (Others are covered by a later wait.)
shown=0 tried=0
for wait in 3 5 8; do
    LS_STANDIN_DROP=$wait LS_STANDIN_ORDER=lazy train drop-$wait llama 2 3 bf16
    tried=$((tried + 1))
    cmp -s "$(weights llama:2:3:bf16)" "$(weights drop-$wait)" || shown=$((shown + 1))
done
if [ $shown -gt 0 ]; then ok "a wait that is left out shows in the bits ($shown of $tried)"; else not_ok "a wait that is left out shows in the bits (none of $tried)"; fi

# Nothing but work on streams touches device memory.
LS_STANDIN_GUARD=1 train guarded gpt2 2 3 bf16 --set checkpoint.every_steps=1
check "the host touches no device memory, checkpoints included" test -f "$(weights guarded)"

# Saves beside training, where copies to the host pass one engine in the order in which they were given: nothing that the thread copies
# may be waited for by a stream that has such copies queued behind. A step of the wide model is too short for its save.
sed 's/hidden_size: 16/hidden_size: 128/' "$work/gpt2.yaml" >"$work/wide.yaml"
for case in gpt2:1:0 wide:2:1 wide:2:3; do
    IFS=: read -r model ranks stage <<<"$case"
    LS_STANDIN_ORDER=lazy LS_STANDIN_ENGINE=1 train engine-$case "$model" "$ranks" "$stage" bf16 --set checkpoint.every_steps=1
    train apart-$case "$model" "$ranks" "$stage" bf16 --set checkpoint.every_steps=1 --set checkpoint.async=false
    check "$model at stage $stage on $ranks GPUs saves beside training with one engine for copies, the same bytes" \
        diff -rq "$work/engine-$case/checkpoints" "$work/apart-$case/checkpoints"
done

# reduction: fixed
train fixed-1 gpt2 1 0 bf16 --set train.reduction=fixed
train fixed-4 gpt2 4 3 bf16 --set train.reduction=fixed
same "reduction: fixed leaves the same weights on 1 GPU and at stage 3 on 4" fixed-1 fixed-4

# Attention within a window: what each position sees is told as documents are.
for precision in fp32 bf16; do
    train cpu-mistral-$precision mistral 1 0 $precision --set device=cpu || not_ok "mistral on CPUs in $precision" "$work/cpu-mistral-$precision.log"
    train mistral-$precision mistral 2 3 $precision
    agrees "mistral at stage 3 on 2 emulated GPUs in $precision agrees with a CPU" cpu-mistral-$precision mistral-$precision "${limit[$precision]}"
done
if [ "$(numbers cpu-mistral-fp32)" != "$(numbers cpu-llama-fp32)" ]; then ok "a window is not all that is before"; else not_ok "a window is not all that is before"; fi

# A sign is another one only where a sum is nearly nothing, and with it the gradient. Muon's iteration makes roundings larger where
# there is next to no gradient too.
for optimizer in lion sgd muon; do
    train cpu-$optimizer gpt2 1 0 fp32 --set optimizer.type=$optimizer --set device=cpu || not_ok "$optimizer on CPUs" "$work/cpu-$optimizer.log"
    train $optimizer gpt2 2 3 fp32 --set optimizer.type=$optimizer
    agrees "$optimizer at stage 3 on 2 emulated GPUs agrees with a CPU" cpu-$optimizer $optimizer "${limit[fp32]}"
done

# Muon's matrices are made orthogonal by whoever has the layer, in any order of streams; all of its products were measured before.
orthogonal=(--set optimizer.type=muon --set train.reduction=fixed)
train orthogonal-1 gpt2 1 0 bf16 "${orthogonal[@]}"
LS_STANDIN_ORDER=lazy train orthogonal-4 gpt2 4 3 bf16 "${orthogonal[@]}"
LS_STANDIN_ORDER=hasty train orthogonal-3 gpt2 3 1 bf16 "${orthogonal[@]}"
same "muon at stage 3 on 4 GPUs, lazily, leaves the weights of one" orthogonal-1 orthogonal-4
same "and at stage 1 on 3, background first" orthogonal-1 orthogonal-3
train muon-bf16 gpt2 2 2 bf16 --set optimizer.type=muon
if grep -q "info product 16 x 16 x 16: .* ms by way" "$work/muon-bf16/logs/rank-00000.log" && ! grep -q "was not measured" "$work/muon-bf16/logs/rank-00000.log"; then
    ok "no product of an update comes unmeasured"
else
    not_ok "no product of an update comes unmeasured" "$work/muon-bf16/logs/rank-00000.log"
fi

# Without master weights. A sum in fp32 that is another is rounded to the other side in one of 2^16 draws for each unit in its last
# place: no more than the roundings above.
bare=(--set optimizer.stochastic_rounding=true --set train.reduction=fixed)
train bare-cpu llama 1 0 bf16 "${bare[@]}" --set device=cpu || not_ok "without master weights on CPUs" "$work/bare-cpu.log"
train bare-1 llama 1 0 bf16 "${bare[@]}"
LS_STANDIN_ORDER=lazy train bare-3 llama 3 3 bf16 "${bare[@]}"
LS_STANDIN_ORDER=hasty train bare-2 llama 2 1 bf16 "${bare[@]}"
agrees "bf16 without master weights agrees with a CPU" bare-cpu bare-1 "${limit[bf16]}"
same "it leaves the same weights on 1 GPU and at stage 3 on 3" bare-1 bare-3
same "and at stage 1 on 2" bare-1 bare-2

# Checkpoints go from GPUs to CPUs and back.
for from in cuda cpu; do
    to=cpu
    [ $from = cpu ] && to=cuda
    name=from-$from
    train $name gpt2 2 2 fp32 --set device=$from --set checkpoint.every_steps=1
    rm -rf "$work/$name/checkpoints/step-00000003" "$work/$name/final"
    train $name gpt2 1 1 fp32 --set device=$to --set checkpoint.every_steps=1 --resume
    agrees "a checkpoint of $from goes on with $to" cpu-gpt2-fp32 $name 2e-6
done

# Memory. The library's workspace of 32 MiB is the only thing on the device that the plan leaves out.
LS_STANDIN_LOG=$work/memory.txt train memory gpt2 2 3 bf16 --set zero.gradient_dtype=bf16
planned=$($emulated plan "$work/gpt2.yaml" -n 2 --gpu h100-sxm --json --set zero.stage=3 --set precision=bf16 --set zero.gradient_dtype=bf16 |
    sed -n 's/.*"needed": *\([0-9]*\).*/\1/p' | head -n 1)
peaks=$(awk '$2 > 0 { print $2 - 32 * 1048576 }' "$work/memory.txt" | sort -u | tr '\n' ' ')
if [ "$peaks" = "$planned " ]; then ok "device memory is the plan's to the byte ($planned)"; else not_ok "device memory is the plan's: planned $planned, taken $peaks" "$work/memory.log"; fi
# NCCL takes memory as ranks are connected and with the first collective over each ring, tree and pair, of every communicator: that is
# before the arena takes what is left, and told apart from the plan's. Here three communicators have 4 times 8 MiB.
LS_STANDIN_NCCL_MEMORY=8388608 train connected gpt2 4 3 bf16 --set zero.replicas=2 --set zero.gradient_dtype=bf16
sed -n 's/.*GPU memory: \([0-9]*\) bytes planned, \(-*[0-9]*\) taken, .* and \([0-9]*\) of NCCL.*/\1 \2 \3/p' "$work"/connected/logs/rank-*.log >"$work/connected.txt"
if awk '$2 < 0.98 * $1 || $2 > 1.02 * $1 || $3 != 12 * 8388608 { bad = 1 } END { exit bad || NR != 4 }' "$work/connected.txt"; then
    ok "what NCCL takes with its first collectives is told apart from the plan's"
else
    not_ok "what NCCL takes with its first collectives is told apart from the plan's: $(tr '\n' ';' <"$work/connected.txt")" "$work/connected.log"
fi
needed=$($emulated plan "$work/wide.yaml" -n 2 --gpu h100-sxm --json --set zero.stage=1 | sed -n 's/.*"needed": *\([0-9]*\).*/\1/p' | head -n 1)
expect 5 "memory: this rank needs .* and the device does not have them" "with too little for both the plan is refused, not a step's first collective lost" \
    env LS_STANDIN_DEVICES=2 LS_STANDIN_NCCL_MEMORY=2097152 LS_STANDIN_MEMORY=$((33554432 + needed + 3145728)) \
    $emulated run "$work/wide.yaml" -n 2 --run-dir "$work/no0" --set zero.stage=1
printf '#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export LS_STANDIN_NCCL_MEMORY=629145600\nexec "$@"\n' >"$work/poor"
chmod 755 "$work/poor"
expect 5 "exit 5 .*rank 1 .*NCCL finds no memory on the GPU .*392.0 MiB are free" "with too little for NCCL alone on one GPU its rank is named" \
    env LS_STANDIN_DEVICES=2 $emulated run "$work/gpt2.yaml" -n 2 --run-dir "$work/no3" --set fault.max_restarts=0 --set "launcher.wrapper=[$work/poor]"
expect 5 "the GPU has for it 0.1 MiB" "what does not fit is refused before it starts" \
    env LS_STANDIN_DEVICES=1 LS_STANDIN_MEMORY=33700000 $emulated run "$work/gpt2.yaml" -n 1 --run-dir "$work/no1"
expect 5 "Stand-in GPU has 1024.0 MiB: 32.0 were held .* are free" "memory that is gone all the same is accounted for" \
    env LS_STANDIN_DEVICES=1 LS_STANDIN_FAIL=2 $emulated run "$work/gpt2.yaml" -n 1 --run-dir "$work/no2"

# A kernel that faults is noticed by whoever calls next, a library mostly, which has no other word for it than that it failed.
expect 1 "GPU 0 \(Stand-in GPU, 0000:01:00.0\) failed at .*: cudaErrorIllegalAddress .*Xid" "a kernel's fault is not taken for the library's that meets it" \
    env LS_STANDIN_DEVICES=1 LS_STANDIN_FAULT=250 $emulated run "$work/gpt2.yaml" -n 1 --run-dir "$work/no4" --set fault.max_restarts=0
printf '#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export LS_STANDIN_FAULT=250\nexec "$@"\n' >"$work/faulty"
chmod 755 "$work/faulty"
expect 1 "exit 1 .*rank 1 .*GPU 1 .* failed at .*: cudaErrorIllegalAddress" "nor for a lost rank, where NCCL meets it" \
    env LS_STANDIN_DEVICES=2 $emulated run "$work/gpt2.yaml" -n 2 --run-dir "$work/no5" --set fault.max_restarts=0 --set "launcher.wrapper=[$work/faulty]"

# Heads of 256 channels and no more.
wide() { LS_STANDIN_DEVICES=1 timeout 120 $emulated run "$work/llama.yaml" -n 1 --run-dir "$work/wide-$1" --set model.head_dim="$1" --set train.steps=1; }
check "heads of 256 channels are taken" wide 256
expect 2 "heads are 258 channels wide .*GPUs take at most 256. Use more and narrower heads" "wider ones are refused before the first step" wide 258
expect 2 "GPUs take at most 256" "and by the plan" $emulated plan "$work/llama.yaml" -n 1 --gpu h100-sxm --set model.head_dim=258

# MFU over the named GPU's dense peak (989.4 Tflop/s of bf16 for this one), with the operations that the plan counts; power and clock.
LS_STANDIN_NAME='NVIDIA H100 80GB HBM3' train named gpt2 2 1 bf16
operations=$($emulated plan "$work/gpt2.yaml" -n 2 --gpu h100-sxm --json | sed -n 's/.*"flops_per_step": *\([0-9.e+]*\).*/\1/p' | head -n 1)
mfu_is_right() {
    sed -n 's/.*"step_seconds":\([-0-9.e]*\),.*"mfu":\([-0-9.e]*\),.*"gpu_power_watts":300.0,"gpu_clock_mhz":1500,.*/\1 \2/p' "$work/named/metrics.jsonl" |
        awk -v operations="$operations" '{ right = operations / $1 / (2 * 989.4e12); if ($2 / right > 0.9999 && $2 / right < 1.0001) count++ } END { exit count < 1 }'
}
check "MFU, power and clock of a known GPU are told" mfu_is_right
check "of an unknown one no MFU" grep -q '"kind":"step".*"mfu":null' "$work/memory/metrics.jsonl"

# What is wrong with GPUs, each in its own words.
refused() { # TEXT WHAT VARIABLES-AND-ARGUMENTS...
    local text=$1 what=$2
    shift 2
    rm -rf "$work/no"
    expect 2 "$text" "$what" env "$@" --run-dir "$work/no"
}
refused "no NVIDIA driver is loaded" "a missing driver is named" LS_STANDIN_DRIVER=0 $emulated run "$work/gpt2.yaml" -n 1
refused "driver is for CUDA 12.4, this program was built with CUDA 1[3-9]" "a driver that is too old is named" LS_STANDIN_DRIVER=12040 $emulated run "$work/gpt2.yaml" -n 1
refused "shows no GPU to this process .CUDA_VISIBLE_DEVICES is 'none'" "no visible GPU is named" \
    LS_STANDIN_DEVICES=0 CUDA_VISIBLE_DEVICES=none $emulated run "$work/gpt2.yaml" -n 1
refused "cudaErrorSystemNotReady .*fabric manager" "NVSwitches that are not ready are named" LS_STANDIN_STATUS=802 $emulated run "$work/gpt2.yaml" -n 1
refused "Tesla T4.* compute capability 7.5, this program was built for 8.0 and newer" "a GPU that is too old is named" \
    LS_STANDIN_DEVICES=1 LS_STANDIN_NAME='Tesla T4' LS_STANDIN_CAPABILITY=75 $emulated run "$work/gpt2.yaml" -n 1
rm -rf "$work/no"
expect 1 "cudaErrorDevicesUnavailable.*Another process has it for itself" "a GPU that another process has for itself is named" \
    env LS_STANDIN_DEVICES=1 LS_STANDIN_EXCLUSIVE=1 $emulated run "$work/gpt2.yaml" -n 1 --run-dir "$work/no" --set fault.max_restarts=0
refused "2 ranks run on this node and each sees 3 GPUs" "numbers of ranks and GPUs that do not go together are named" LS_STANDIN_DEVICES=3 $emulated run "$work/gpt2.yaml" -n 2
refused "ranks 0 and 1 are both on GPU 0000:01:00.0" "two ranks on one GPU are named" LS_STANDIN_DEVICES=1 $emulated run "$work/gpt2.yaml" -n 2
devices_shown=1 train shared gpt2 2 1 fp32 --set gpu.share=true
agrees "gpu.share lets two ranks train on one GPU" cpu-gpt2-fp32 shared 2e-6
LS_STANDIN_DRIVER=0 train auto gpt2 1 0 fp32 --set device=auto
same "device: auto trains on CPUs where there is no driver" cpu-gpt2-fp32 auto

if [ "$LS_TEST_LONG" = 1 ]; then
    make -s -j2 BUILD=build/asan OPTIMISE='-O1 -DLS_DEBUG' \
        SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' \
        build/asan/emulator/lockstep build/asan/emulator/lockstep-worker >"$work/make.log" 2>&1 || tail -n 5 "$work/make.log"
    expect 0 "steps +$steps of $steps" "under the address and undefined behaviour sanitizers two ranks train and save at stage 3" \
        env LOCKSTEP_CUDA_LIBRARIES="$PWD/build/asan/emulator/lib" ASAN_OPTIONS=detect_leaks=0 LS_STANDIN_DEVICES=2 LS_STANDIN_ORDER=lazy LS_STANDIN_ENGINE=1 \
        build/asan/emulator/lockstep run "$work/gpt2.yaml" -n 2 --run-dir "$work/asan" --set zero.stage=3 --set precision=bf16 \
        --set checkpoint.every_steps=1
fi

# The real program, with CUDA built in: CPUs where no CUDA library is at all.
expect 2 "no NVIDIA driver is loaded|shows no GPU" "the program built with CUDA says why there is no GPU" \
    "$lockstep" run "$work/gpt2.yaml" -n 1 --run-dir "$work/real" # on a host without GPUs
toolkit=$(readlink -f /usr/local/cuda)
if unshare -m true 2>/dev/null && [ -d "$toolkit" ]; then
    expect 0 "steps +3 of 3" "the program built with CUDA trains on CPUs without any CUDA library on the machine" \
        unshare -m env -u LOCKSTEP_CUDA_LIBRARIES bash -c "mount -t tmpfs none $toolkit && ! ls $toolkit/lib64 2>/dev/null &&
            ldconfig -C $work/ld.so.cache && '$lockstep' run '$work/gpt2.yaml' -n 1 --run-dir '$work/hidden' --set device=auto"
else
    skip "the program built with CUDA trains without any CUDA library" "mount namespaces are not permitted, or there is no toolkit to hide"
fi
exit 0
