#!/usr/bin/env python3
"""Trains a GPT-2 or a Llama in PyTorch on one GPU and prints JSON objects, a line each: the peer of scripts/bench/gpu.

PyTorch gets its best: torch.compile, fused attention (by FlashAttention or by cuDNN, whichever is faster), the fused optimizer, autocast
to bf16 over fp32 weights, a vocabulary padded to a multiple of 128. Of the batches in --batches it takes the one that is fastest without
compilation, and compiled also the next larger one. A step has --tokens-per-step tokens, in as many micro-batches as the batch asks for;
the host waits for the GPU before the first and after the last timed step alone. Every line holds all that was measured up to then, so
that the last one counts when the time ends early; "complete" says that nothing was left out. With --device cpu it only shows that it runs."""

import argparse
import contextlib
import gc
import json
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


def attend(q, k, v):
    grouped = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    return out.transpose(1, 2).flatten(2)


class GPT2Layer(nn.Module):
    def __init__(self, o):
        super().__init__()
        C = o.channels
        self.heads = o.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.c_fc, self.mlp_c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x, rotation):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(C, dim=2))
        x = x + self.c_proj(attend(q, k, v))
        return x + self.mlp_c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class RMSNorm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


def rotate(x, rotation):
    cosine, sine = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1).to(x.dtype)


class LlamaLayer(nn.Module):
    def __init__(self, o):
        super().__init__()
        C, D = o.channels, o.channels // o.heads
        self.heads, self.kv_heads = o.heads, o.kv_heads
        self.norm_1, self.norm_2 = RMSNorm(C), RMSNorm(C)
        self.qkv, self.o_proj = nn.Linear(C, (o.heads + 2 * o.kv_heads) * D, bias=False), nn.Linear(C, C, bias=False)
        self.gate_up, self.down_proj = nn.Linear(C, 2 * o.intermediate, bias=False), nn.Linear(o.intermediate, C, bias=False)

    def forward(self, x, rotation):
        B, T, C = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, self.heads + 2 * self.kv_heads, -1).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        x = x + self.o_proj(attend(rotate(q, rotation), rotate(k, rotation), v))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, o):
        super().__init__()
        llama = o.family == "llama"
        padded = (o.vocabulary + 127) // 128 * 128
        self.wte = nn.Embedding(padded, o.channels)
        self.wpe = None if llama else nn.Embedding(o.length, o.channels)
        self.layers = nn.ModuleList((LlamaLayer if llama else GPT2Layer)(o) for _ in range(o.layers))
        self.norm = RMSNorm(o.channels) if llama else nn.LayerNorm(o.channels)
        size = o.channels // o.heads
        angle = torch.outer(torch.arange(o.length).float(), 500000.0 ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * o.layers) if residual else 0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight
        for layer in self.layers:
            x = layer(x, (self.cosine, self.sine))
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


STEPS_MIN, MEASURE_SECONDS = 3, 8


class Trainer:
    def __init__(self, o, device):
        torch.manual_seed(0)
        self.o, self.device = o, device
        with torch.device(device):
            self.model = Model(o)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                           lr=6e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.loss_of = self.model
        self.first_loss = None

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def release(self):
        """Gives back to the GPU what no tensor holds."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def step(self, batch, micro_batches):
        total = torch.zeros((), device=self.device)
        for _ in range(micro_batches):
            rows = torch.randint(self.o.vocabulary, (batch, self.o.length + 1), device=self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = self.loss_of(rows[:, :-1], rows[:, 1:]) / micro_batches
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def time(self, batch, attention, warm, steps):
        """What up to `steps` steps take behind `warm` untimed ones, by this attention (None: PyTorch's own choice); None when it does not fit."""
        micro_batches = max(1, self.o.tokens_per_step // (batch * self.o.length))
        self.release()
        try:
            with by(attention):
                for _ in range(warm):
                    self.synchronize()
                    started = time.perf_counter()
                    loss = self.step(batch, micro_batches)
                    self.first_loss = loss.item() if self.first_loss is None else self.first_loss
                self.synchronize()
                if steps > STEPS_MIN:  # as many as are enough
                    steps = min(steps, max(STEPS_MIN, round(MEASURE_SECONDS / (time.perf_counter() - started))))
                started = time.perf_counter()
                for _ in range(steps):
                    self.step(batch, micro_batches)
                self.synchronize()
                seconds = (time.perf_counter() - started) / steps
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        if not fits:  # only out here nothing holds the tensors of the step that failed
            self.release()
            return None
        tokens = micro_batches * batch * self.o.length
        free, whole = torch.cuda.mem_get_info() if self.device.type == "cuda" else (0, 0)
        return {"batch": batch, "attention": attention or "default", "tokens": tokens, "steps": steps, "seconds": seconds,
                "tokens_per_second": tokens / seconds, "peak_bytes": whole - free}


ATTENTIONS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}


def by(attention):
    """The context in which scaled_dot_product_attention is this one."""
    if attention is None:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(getattr(SDPBackend, ATTENTIONS[attention]))


def faster(a, b):
    return b if a is None or (b is not None and b["tokens_per_second"] > a["tokens_per_second"]) else a


def note(text):
    print(f"gpu_torch: {text}", file=sys.stderr, flush=True)


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def best_eager(trainer, o):
    """The fastest batch, then the faster attention there, then all timed steps; and the batches that fit."""
    best, fitting = None, []
    for batch in o.batches:
        found = trainer.time(batch, None, 1, 2)
        if found is None:
            break
        fitting.append(batch)
        if best and found["tokens_per_second"] < 0.97 * best["tokens_per_second"]:
            break
        best = faster(best, found)
    if best is None:
        sys.exit("gpu_torch: not even the smallest batch fits")
    choice = None
    for attention in ATTENTIONS:
        try:
            found = trainer.time(best["batch"], attention, 1, 2)
        except (RuntimeError, ImportError, AttributeError) as error:  # this GPU or PyTorch has none of that kind
            note(f"attention by {attention}: {first_line(error)}")
            continue
        choice = faster(choice, found)
    attention = choice["attention"] if choice and choice["tokens_per_second"] > best["tokens_per_second"] else None
    return trainer.time(best["batch"], attention, 2, o.steps) or best, attention


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=("gpt2", "llama"), required=True)
    for name in ("layers", "heads", "channels", "vocabulary", "length", "tokens-per-step"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--kv-heads", type=int, help="default: --heads")
    parser.add_argument("--intermediate", type=int)
    parser.add_argument("--batches", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=20, help="timed ones, at most")
    parser.add_argument("--seconds", type=float, default=600, help="no second batch is compiled if that would take longer")
    parser.add_argument("--device", default="cuda")
    o = parser.parse_args()
    o.kv_heads = o.kv_heads or o.heads
    o.batches = sorted(int(text) for text in o.batches.split(","))
    began = time.perf_counter()
    device = torch.device(o.device)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(o, device)
    modes = {}
    eager, attention = best_eager(trainer, o)
    modes["eager"] = eager
    # What is left to be compiled: each shape for itself, not one program for all, which is slower.
    batches, failure = [eager["batch"], *[batch for batch in o.batches if batch > eager["batch"]][:1]], None
    trainer.loss_of = torch.compile(trainer.model, dynamic=False)

    def tell():
        missing = failure or ", ".join(f"torch.compile at batch {batch}" for batch in batches)
        mode = max(modes, key=lambda name: modes[name]["tokens_per_second"])
        print(json.dumps(modes[mode] | {
            "mode": mode, "modes": modes, "complete": not missing, "missing": missing or None, "first_loss": trainer.first_loss,
            "version": torch.__version__, "parameters": sum(p.numel() for p in trainer.model.parameters())}), flush=True)

    tell()
    while batches:
        started = time.perf_counter()
        try:
            found = trainer.time(batches[0], attention, 2, o.steps)
        except Exception as error:  # no compiler on this machine, for one: what was measured stands, and the report says so
            failure = f"torch.compile at batch {batches[0]}: {first_line(error)}"
            note(failure)
            batches.clear()
        else:
            batch, took = batches.pop(0), time.perf_counter() - started
            if found is None:
                note(f"compiled, batch {batch} does not fit")
            else:
                modes["compiled"] = faster(modes.get("compiled"), found)
        tell()
        if batches and time.perf_counter() - began + 1.2 * took > o.seconds:
            break


if __name__ == "__main__":
    main()
