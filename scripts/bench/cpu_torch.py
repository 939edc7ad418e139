#!/usr/bin/env python3
"""Trains a GPT-2 or a Llama in PyTorch on CPUs and prints one JSON object: the peer of scripts/bench/cpu.

The model, its initial values and the step are those of Lockstep: tied head, fp32 or bf16 over fp32 weights, AdamW with decay on matrices only, gradients clipped to
norm 1; GPT-2 with biases and tanh GELU. PyTorch gets its best: fused attention, joined projections, the fused optimizer, torch.compile
with --compile, and as one of several ranks DistributedDataParallel over gloo with gradients that are views of its buckets."""

import argparse
import json
import math
import resource
import time

import torch
from torch import nn
from torch.nn import functional as F


def attend(q, k, v, shape):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(shape)


class GPT2Layer(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels)
        self.c_attn = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, channels)
        self.ln_2 = nn.LayerNorm(channels)
        self.c_fc = nn.Linear(channels, 4 * channels)
        self.mlp_c_proj = nn.Linear(4 * channels, channels)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (q, k, v))
        x = x + self.c_proj(attend(q, k, v, x.shape))
        return x + self.mlp_c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, vocabulary, length, layers, heads, channels):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, channels)
        self.wpe = nn.Embedding(length, channels)
        self.layers = nn.ModuleList(GPT2Layer(channels, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(channels)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def rotate(x, cosine, sine):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


class LlamaLayer(nn.Module):
    def __init__(self, channels, heads, intermediate):
        super().__init__()
        self.heads = heads
        self.input_norm = nn.RMSNorm(channels, eps=1e-5)
        self.qkv_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.c_proj = nn.Linear(channels, channels, bias=False)
        self.post_norm = nn.RMSNorm(channels, eps=1e-5)
        self.gate_up_proj = nn.Linear(channels, 2 * intermediate, bias=False)
        self.mlp_c_proj = nn.Linear(intermediate, channels, bias=False)

    def forward(self, x, cosine, sine):
        B, T, C = x.shape
        q, k, v = self.qkv_proj(self.input_norm(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (q, k, v))
        x = x + self.c_proj(attend(rotate(q, cosine, sine), rotate(k, cosine, sine), v, x.shape))
        gate, up = self.gate_up_proj(self.post_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_c_proj(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, vocabulary, length, layers, heads, channels, intermediate):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, channels)
        self.layers = nn.ModuleList(LlamaLayer(channels, heads, intermediate) for _ in range(layers))
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        size = channels // heads
        angles = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embed_tokens(tokens)
        cosine, sine = self.cosine[:tokens.shape[1]], self.sine[:tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cosine, sine)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def build(options):
    shape = (options.vocabulary, options.length, options.layers, options.heads, options.channels)
    model = Llama(*shape, options.intermediate) if options.family == "llama" else GPT2(*shape)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            residual = name.endswith("c_proj.weight")
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.layers) if residual else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def gemm_rate(dtype):
    """GFLOP/s of 2048 x 2048 x 2048 products, the best of ten."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    c = torch.empty(2048, 2048, dtype=dtype)
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best / 1e9


def read_samples(path, length):
    """Inputs and targets [samples, length]: sample i begins at token i * length, as in Lockstep."""
    with open(path, "rb") as file:
        tokens = torch.frombuffer(bytearray(file.read()), dtype=torch.uint16).long()
    count = (len(tokens) - 1) // length
    return tokens[:count * length].view(count, length), tokens[1:count * length + 1].view(count, length)


def sample_order(count, wanted, shuffle):
    """The samples in the order they are used: one pass after the other, each in an order of its own if they are shuffled."""
    order = torch.cat([torch.randperm(count) if shuffle else torch.arange(count) for _ in range(-(-wanted // count))])
    return order[:wanted]


def learning_rate(step, options):
    """Of step `step` from 0: Lockstep's cosine schedule, or a constant without --cosine."""
    if not options.cosine:
        return options.lr
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / (options.steps - options.warmup)
    return options.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def validate(model, path, length, precision):
    """Mean loss over the samples of a file."""
    inputs, targets = read_samples(path, length)
    total = 0.0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        for x, y in zip(inputs.split(64), targets.split(64)):
            total += model(x, y).item() * len(x)
    return total / len(inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("vocabulary", "length", "layers", "heads", "channels", "batch", "steps", "threads"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--family", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--intermediate", type=int, help="llama: width of the feed-forward layers")
    parser.add_argument("--tokens", required=True, help="file of uint16 tokens")
    parser.add_argument("--compile", action="store_true", help="run through torch.compile")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: by autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle", action="store_true", help="each pass over the samples in a random order")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--cosine", action="store_true", help="the learning rate falls to a tenth")
    parser.add_argument("--warmup", type=int, default=0, help="steps in which the learning rate rises, with --cosine")
    parser.add_argument("--validation", help="file of uint16 tokens to measure the loss on at the end")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--rendezvous", help="with --ranks: a file in which the ranks find each other")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    gemm = gemm_rate(torch.bfloat16 if options.precision == "bf16" else torch.float32) if options.ranks == 1 else None
    inputs, targets = read_samples(options.tokens, options.length)
    model = build(options)
    parameters = sum(p.numel() for p in model.parameters())
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, options.beta2), eps=1e-8, fused=True)
    loss_of = model
    if options.ranks > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{options.rendezvous}", rank=options.rank,
                                             world_size=options.ranks)
        loss_of = nn.parallel.DistributedDataParallel(loss_of, gradient_as_bucket_view=True, static_graph=not options.compile)
    if options.compile:
        loss_of = torch.compile(loss_of)

    global_batch = options.batch * options.ranks
    order = sample_order(len(inputs), options.steps * global_batch, options.shuffle)
    seconds, first_loss, value = [], None, None
    for step in range(options.steps):
        started = time.perf_counter()
        begin = step * global_batch + options.rank * options.batch
        picked = order[begin:begin + options.batch]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of(inputs[picked], targets[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
        seconds.append(time.perf_counter() - started)
        first_loss = value if first_loss is None else first_loss
    validation = validate(model, options.validation, options.length, options.precision) if options.validation else None
    if options.rank == 0:
        print(json.dumps({"seconds": seconds, "first_loss": first_loss, "last_loss": value, "validation_loss": validation,
                          "parameters": parameters, "gemm_gflops": gemm, "version": torch.__version__,
                          "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    if options.ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
