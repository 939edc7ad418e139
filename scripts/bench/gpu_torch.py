#!/usr/bin/env python3
"""Trains a GPT-2 or a Llama in PyTorch on one GPU and prints one JSON object: the peer of scripts/bench/gpu.

PyTorch gets its best: torch.compile, fused attention, the fused optimizer, autocast to bf16 over fp32 weights, a vocabulary padded to a
multiple of 128, and of the batches in --batches the one that is fastest without compilation (the largest ones may not fit). A step has
--tokens-per-step tokens, in as many micro-batches as the batch asks for. With --device cpu it only shows that it runs."""

import argparse
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

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

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

    def time(self, batch, warm, steps):
        """Seconds of each step, and the first loss; None when it does not fit."""
        micro_batches = max(1, self.o.tokens_per_step // (batch * self.o.length))
        seconds, first = [], None
        try:
            for i in range(warm + steps):
                self.synchronize()
                started = time.perf_counter()
                loss = self.step(batch, micro_batches)
                self.synchronize()
                if i >= warm:
                    seconds.append(time.perf_counter() - started)
                first = loss.item() if first is None else first
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        return {"batch": batch, "tokens": micro_batches * batch * self.o.length, "seconds": seconds, "first_loss": first}


def rate(result):
    middle = sorted(result["seconds"])[len(result["seconds"]) // 2]
    return result["tokens"] / middle


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=("gpt2", "llama"), required=True)
    for name in ("layers", "heads", "channels", "vocabulary", "length", "tokens-per-step"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--kv-heads", type=int, help="default: --heads")
    parser.add_argument("--intermediate", type=int)
    parser.add_argument("--batches", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600, help="without compilation once they are used up")
    parser.add_argument("--device", default="cuda")
    o = parser.parse_args()
    o.kv_heads = o.kv_heads or o.heads
    began = time.perf_counter()
    device = torch.device(o.device)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(o, device)

    eager = None
    for batch in sorted(int(text) for text in o.batches.split(",")):
        found = trainer.time(batch, 1, 2)
        if found is None:
            break
        if eager is None or rate(found) > rate(eager):
            eager = found
        elif rate(found) < 0.97 * rate(eager):
            break
    if eager is None:
        sys.exit("gpu_torch: not even the smallest batch fits")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    best, mode = trainer.time(eager["batch"], 0, o.steps), "eager"
    if time.perf_counter() - began < o.seconds:
        try:
            trainer.loss_of = torch.compile(trainer.model)
            compiled = trainer.time(eager["batch"], 2, o.steps)
            if compiled and rate(compiled) > rate(best):
                best, mode = compiled, "compiled"
        except Exception as error:  # no compiler on this machine, for one: eager it is, and the report says so
            print(f"gpu_torch: torch.compile failed: {str(error).splitlines()[0]}", file=sys.stderr)
    print(json.dumps(best | {
        "mode": mode, "tokens_per_second": rate(best), "first_loss": eager["first_loss"], "version": torch.__version__,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "peak_bytes": torch.cuda.max_memory_reserved() if device.type == "cuda" else 0}))


if __name__ == "__main__":
    main()
