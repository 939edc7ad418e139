#!/usr/bin/env bash
# scripts/bench/cpu beside llm.c, whose program is a script here: it looks whether both sides are given the same model and tokens, and tells
# of other losses, which the benchmark has to notice.
source "$(dirname "$0")/lib.sh"
bench=$PWD/scripts/bench/cpu
cat >"$work/train_gpt2" <<'PYTHON'
#!/usr/bin/env python3
import array, json, sys
L, C, V, T, PADDED = 4, 128, 65, 64, 128
model = open("gpt2_124M.bin", "rb").read()
assert array.array("i", model[:32]).tolist() == [20240326, 3, T, V, L, 4, C, PADDED], "header"
weights = array.array("f", model[1024:])
theirs = open("hugging-face/model.safetensors", "rb").read()
size = int.from_bytes(theirs[:8], "little")
header, data = json.loads(theirs[8:8 + size]), theirs[8 + size:]
at = 0
def take(count):
    global at
    at += count
    return weights[at - count:at]
def tensor(name):
    begin, end = header[name]["data_offsets"]
    return header[name]["shape"], array.array("f", data[begin:end])
def same(name, rows, columns=None):
    shape, found = tensor(name)
    here = take(rows * (columns or 1))
    if ".c_" in name and columns:  # [inputs, outputs] there
        assert shape == [columns, rows], name
        here = array.array("f", (here[o * columns + i] for i in range(columns) for o in range(rows)))
    assert here == found and len(set(found)) > (1 if columns else 0), name
same("wte.weight", V, C)
assert not any(take((PADDED - V) * C)), "padding"
same("wpe.weight", T, C)
for name, *shape in (("ln_1.weight", C), ("ln_1.bias", C), ("attn.c_attn.weight", 3 * C, C), ("attn.c_attn.bias", 3 * C), ("attn.c_proj.weight", C, C),
                     ("attn.c_proj.bias", C), ("ln_2.weight", C), ("ln_2.bias", C), ("mlp.c_fc.weight", 4 * C, C), ("mlp.c_fc.bias", 4 * C),
                     ("mlp.c_proj.weight", C, 4 * C), ("mlp.c_proj.bias", C)):
    for layer in range(L):
        same(f"h.{layer}.{name}", *shape)
same("ln_f.weight", C)
same("ln_f.bias", C)
assert at == len(weights), "something is left"
tokens = open("tokens.bin", "rb").read()
for split in ("train", "val"):
    shard = open(f"dev/data/tinyshakespeare/tiny_shakespeare_{split}.bin", "rb").read()
    assert array.array("i", shard[:12]).tolist() == [20240520, 1, 257] and shard[1024:] == tokens and len(tokens) == 514, split
print("same model", file=open("/dev/stderr", "w"))
for step in range(40):
    print(f"step {step}: train loss 4.000000 (took 12.500000 ms)", flush=True)
PYTHON
chmod +x "$work/train_gpt2"
expect 1 "the losses of the two sides are up to .* apart" "both sides get one model, and losses that differ are an error" \
    "$bench" --lockstep "$lockstep" --llmc "$work/train_gpt2" --sizes small --pairs 1 --steps 3
check "its rate was read: 256 tokens in 12.5 ms" grep -q "llm.c 20,480 tokens/s" "$work/expect.log"
sed -i 's/^print("same model".*/sys.exit(3)/' "$work/train_gpt2"
expect 1 "told of 0 steps, 5 were to be measured" "a program that ends early is named" \
    "$bench" --lockstep "$lockstep" --llmc "$work/train_gpt2" --sizes small --pairs 1 --steps 3
expect 2 "is no program" "a program that is not there is refused" "$bench" --lockstep "$lockstep" --llmc "$work/nothing"
expect 2 "at most 18" "more steps than llm.c's program takes before it writes text are refused" \
    "$bench" --lockstep "$lockstep" --llmc "$work/train_gpt2" --steps 19
expect 2 "is no GPT-2" "another family is refused" "$bench" --lockstep "$lockstep" --llmc "$work/train_gpt2" --sizes baby-llama
expect 2 "one at a time" "and two measurements at once" "$bench" --lockstep "$lockstep" --llmc "$work/train_gpt2" --ddp
