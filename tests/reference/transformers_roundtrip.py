#!/usr/bin/env python3
"""Models to and from transformers (https://github.com/huggingface/transformers).

    transformers_roundtrip.py make [NAME...]    writes tests/reference/transformers/: small folders saved by transformers, with the
                                                logits and the greedy continuation that transformers computes (needs torch, transformers)
    transformers_roundtrip.py stored LOCKSTEP   generates from those folders with LOCKSTEP and compares (standard library only)
    transformers_roundtrip.py ours LOCKSTEP FOLDER PROMPT   loads our checkpoint FOLDER in transformers and compares logits, greedy
                                                tokens and the tokenizer (needs torch, transformers); PROMPT is text, or ids
                                                as 1,2,3 for a model without our tokenizer

Exits with 1 when anything differs. Logits must agree within 1e-5 of the largest: fp32 sums in another order (2e-6 was seen).
"""
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "transformers")
TOLERANCE = 1e-5
NEW_TOKENS = 24
# Odd sizes, grouped queries, tied and untied heads, scaled rotary angles, half precision, an index of several files.
CASES = {
    "gpt2": dict(kind="gpt2", vocab_size=61, n_positions=48, n_embd=20, n_layer=3, n_head=5, n_inner=27),
    "gpt2-untied-bf16": dict(kind="gpt2", vocab_size=53, n_positions=40, n_embd=21, n_layer=2, n_head=3, tie_word_embeddings=False,
                             save_dtype="bfloat16"),
    "llama": dict(kind="llama", vocab_size=67, hidden_size=24, intermediate_size=35, num_hidden_layers=2, num_attention_heads=6,
                  num_key_value_heads=2, max_position_embeddings=64, shard="12KB",
                  rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                       original_max_position_embeddings=16)),
    "llama-tied-fp16": dict(kind="llama", vocab_size=45, hidden_size=20, intermediate_size=27, num_hidden_layers=2,
                            num_attention_heads=5, num_key_value_heads=1, head_dim=6, max_position_embeddings=64,
                            tie_word_embeddings=True, save_dtype="float16"),
    "qwen2": dict(kind="qwen2", vocab_size=57, hidden_size=24, intermediate_size=29, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, shard="12KB"),
    "qwen3-bf16": dict(kind="qwen3", vocab_size=51, hidden_size=22, intermediate_size=37, num_hidden_layers=2, num_attention_heads=3,
                       num_key_value_heads=1, head_dim=10, max_position_embeddings=64, save_dtype="bfloat16", shard="6KB"),
    "mistral": dict(kind="mistral", vocab_size=49, hidden_size=26, intermediate_size=31, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=6, shard="25KB"),
    "mistral-all": dict(kind="mistral", vocab_size=43, hidden_size=24, intermediate_size=33, num_hidden_layers=2, num_attention_heads=3,
                        num_key_value_heads=3, max_position_embeddings=64, sliding_window=None),
}


def make(names):
    import torch
    import transformers

    for number, (name, sizes) in enumerate(CASES.items()):
        if name not in names:
            continue
        sizes = dict(sizes)
        kind, shard, dtype = sizes.pop("kind"), sizes.pop("shard", "1GB"), getattr(torch, sizes.pop("save_dtype", "float32"))
        torch.manual_seed(20 + number)
        special = dict(bos_token_id=None, eos_token_id=None)
        family = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}[kind]
        config = getattr(transformers, family + "Config")(**sizes, **special)
        model = getattr(transformers, "GPT2LMHeadModel" if kind == "gpt2" else family + "ForCausalLM")(config)
        # Larger weights than a fresh model's, so that greedy choices are far from ties.
        with torch.no_grad():
            for parameter in model.parameters():
                norm = kind != "gpt2" and parameter.dim() == 1 and bool((parameter == 1).all())
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if norm else 0.0))
        folder = os.path.join(HERE, name)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        prompt = [(7 * i * i + 3 * i + number) % sizes["vocab_size"] for i in range(9)]
        tokens, margin = list(prompt), float("inf")
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                last = model(torch.tensor([tokens])).logits[0, -1]
                best = torch.topk(last, 2).values
                margin = min(margin, float(best[0] - best[1]) / float(last.abs().max()))
                tokens.append(int(last.argmax()))
            logits = model(torch.tensor([tokens])).logits[0]
        assert margin > 20 * TOLERANCE, f"{name}: a greedy choice is nearly a tie ({margin}); change the seed"
        expected = dict(prompt=prompt, tokens=tokens, margin=margin, transformers=transformers.__version__, torch=torch.__version__,
                        logits=[[float(f"{x:.7g}") for x in row.tolist()] for row in logits])
        with open(os.path.join(folder, "expected.json"), "w") as out:
            json.dump(expected, out)
        generation = os.path.join(folder, "generation_config.json")
        if os.path.exists(generation):
            os.remove(generation)
        print(name, sum(p.numel() for p in model.parameters()), "parameters, smallest margin", margin)


def read_logits(path):
    """The tensors of a file of `lockstep generate --logits`."""
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    header, body, tensors = json.loads(data[8 : 8 + length]), data[8 + length :], {}
    for name in ("logits", "tokens"):
        begin, end = header[name]["data_offsets"]
        code = "f" if header[name]["dtype"] == "F32" else "i"
        tensors[name] = struct.unpack(f"<{(end - begin) // 4}{code}", body[begin:end])
    width = header["logits"]["shape"][1]
    rows = [tensors["logits"][i : i + width] for i in range(0, len(tensors["logits"]), width)]
    return rows, list(tensors["tokens"])


def generate(lockstep, folder, arguments, count=NEW_TOKENS):
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "logits")
        command = [lockstep, "generate", folder, "--temperature", "0", "--max-tokens", str(count), "--logits", path]
        done = subprocess.run(command + arguments, stdout=subprocess.PIPE, check=True)
        rows, tokens = read_logits(path)
        return rows, tokens, done.stdout


def compare(name, rows, tokens, expected_rows, expected_tokens):
    if tokens != expected_tokens:
        print(f"{name}: FAILED, tokens {tokens} instead of {expected_tokens}")
        return False
    largest = max(abs(x) for row in expected_rows for x in row)
    worst = max(abs(a - b) for row, expected in zip(rows, expected_rows) for a, b in zip(row, expected)) / largest
    good = len(rows) == len(expected_rows) and worst <= TOLERANCE
    print(f"{name}: {'same' if good else 'FAILED,'} greedy tokens, logits differ by {worst:.2e} of the largest at most")
    return good


def stored(lockstep):
    good = True
    for name in CASES:
        folder = os.path.join(HERE, name)
        with open(os.path.join(folder, "expected.json")) as file:
            expected = json.load(file)
        rows, tokens, printed = generate(lockstep, folder, ["--prompt-ids", ",".join(map(str, expected["prompt"]))])
        good &= compare(name, rows, tokens, expected["logits"], expected["tokens"])
        if printed.decode().strip() != ",".join(map(str, expected["tokens"])):
            print(f"{name}: FAILED, printed {printed!r}")
            good = False
    return good


def encode(folder, tokenizer, prompt):
    """The prompt's bytes as ids, which is what our tokenizer has to give; None when it does not."""
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if ids != list(prompt.encode()) or tokenizer.decode(ids) != prompt:
        print(f"{folder}: FAILED, the tokenizer gives {ids}")
        return None
    document = tokenizer.encode("<|endoftext|>", add_special_tokens=False)
    if document != [256]:
        print(f"{folder}: FAILED, the tokenizer gives {document} for the end of a document")
        return None
    return ids


def ours(lockstep, folder, prompt):
    import torch
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    problems = {key: value for key, value in report.items() if value}
    if problems:
        print(f"{folder}: FAILED, transformers reports {problems}")
        return False
    if re.fullmatch(r"\d+(,\d+)*", prompt):
        ids, given = [int(word) for word in prompt.split(",")], ["--prompt-ids", prompt]
    else:
        ids, given = encode(folder, transformers.AutoTokenizer.from_pretrained(folder), prompt), ["--prompt", prompt]
    if ids is None:
        return False
    count = min(NEW_TOKENS, model.config.max_position_embeddings - len(ids))
    if count < 1:
        print(f"{folder}: FAILED, the prompt fills the window of {model.config.max_position_embeddings} tokens")
        return False
    rows, tokens, _ = generate(lockstep, folder, given, count)
    model.eval()
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)[0].tolist()
        if made and made[-1] == model.config.eos_token_id:
            made.pop()
        logits = model(torch.tensor([made])).logits[0].tolist()
    return compare(folder, rows, tokens, logits, made)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "make":
        make(sys.argv[2:] or CASES)
    elif len(sys.argv) == 3 and sys.argv[1] == "stored":
        sys.exit(not stored(sys.argv[2]))
    elif len(sys.argv) == 5 and sys.argv[1] == "ours":
        sys.exit(not ours(*sys.argv[2:]))
    else:
        sys.exit(__doc__)
