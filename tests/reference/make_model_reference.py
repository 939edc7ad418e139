#!/usr/bin/env python3
"""Writes gpt2, llama, qwen2, qwen3 and mistral.safetensors beside itself: small models of odd sizes in Hugging Face's implementation, run in
double precision, for tests/unit/test_model_reference.c. README.md says what is in them. Needs torch, transformers, safetensors."""

import json
import math
import pathlib

import torch
import transformers
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent
BATCH, LENGTH, STEPS = 3, 23, 10
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "gradient_clipping": 1.0}
SGD = {"lr": 3e-2, "momentum": 0.9}
MUON = {"momentum": 0.95}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


def keep_double(family):
    """Hugging Face's Llama (and so Qwen) casts to float inside its norm and its rotary angles; here the same formulas keep their argument's type."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        angles = (position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    if family == "gpt2":
        return
    module = getattr(getattr(transformers.models, family), f"modeling_{family}")
    getattr(module, f"{family.title()}RMSNorm").forward = norm
    getattr(module, f"{family.title()}RotaryEmbedding").forward = rotary


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=29, n_embd=28, n_layer=2, n_head=4, layer_norm_epsilon=1e-5,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa")
    model = transformers.GPT2LMHeadModel(config)
    described = {"model_type": "gpt2", "vocab_size": 61, "hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": 29, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5}
    return model, described


def llama():
    # 6 heads of 8 channels on 30 hidden ones, three heads to a key-value head. With 8 channels and theta 500 one pair of the
    # rotary embedding lies in the unscaled range, one in the blended and two in the scaled one.
    config = transformers.LlamaConfig(
        vocab_size=67, hidden_size=30, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        intermediate_size=44, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters=LLAMA3, attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config)
    described = {"model_type": "llama", "vocab_size": 67, "hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 6,
                 "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 44, "max_position_embeddings": 512,
                 "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "rope_scaling": LLAMA3}
    return model, described


def qwen2():
    # 9 heads of 6 channels on 54 hidden ones, three heads to a key-value head, with biases.
    config = transformers.Qwen2Config(
        vocab_size=71, hidden_size=54, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3, intermediate_size=37,
        max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, attn_implementation="sdpa")
    model = transformers.Qwen2ForCausalLM(config)
    described = {"model_type": "qwen2", "vocab_size": 71, "hidden_size": 54, "num_hidden_layers": 2, "num_attention_heads": 9,
                 "num_key_value_heads": 3, "intermediate_size": 37, "max_position_embeddings": 64,
                 "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 1000.0}
    return model, described


def qwen3():
    # 4 heads of 10 channels on 26 hidden ones, two heads to a key-value head; each head of q and k is normalised.
    config = transformers.Qwen3Config(
        vocab_size=59, hidden_size=26, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        intermediate_size=43, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 3000.0}, attn_implementation="sdpa")
    model = transformers.Qwen3ForCausalLM(config)
    described = {"model_type": "qwen3", "vocab_size": 59, "hidden_size": 26, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 43, "max_position_embeddings": 64,
                 "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 3000.0}
    return model, described


def mistral():
    # 5 heads of 8 channels on 36 hidden ones sharing a key-value head, each position seeing the last 7.
    config = transformers.MistralConfig(
        vocab_size=63, hidden_size=36, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1, head_dim=8,
        intermediate_size=41, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=7,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0}, attn_implementation="sdpa")
    model = transformers.MistralForCausalLM(config)
    described = {"model_type": "mistral", "vocab_size": 63, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 5,
                 "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 41, "max_position_embeddings": 64,
                 "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "rope_theta": 700.0, "sliding_window": 7}
    return model, described


def make_batches(vocabulary):
    """STEPS + 1 batches: tokens, targets with some ignored, and where the document of each position starts."""
    tokens = torch.randint(vocabulary, (STEPS + 1, BATCH, LENGTH))
    targets = torch.randint(vocabulary, (STEPS + 1, BATCH, LENGTH))
    starts = torch.zeros((STEPS + 1, BATCH, LENGTH), dtype=torch.int64)
    for step in range(STEPS + 1):
        for b in range(BATCH):
            documents = torch.randperm(LENGTH - 1)[: (step + b) % 4] + 1  # 0 to 3 boundaries inside the sequence
            for t in range(LENGTH):
                starts[step, b, t] = max([0] + [int(d) for d in documents if d <= t])
            for d in documents:
                targets[step, b, d - 1] = -1  # the target lies in another document
    targets[:, 1, 5] = -1
    return tokens, targets, starts


def document_mask(starts, dtype, window):
    """[B, 1, T, T], added to the scores: position i sees j when start[i] <= j <= i, and i - window < j where there is one."""
    i = torch.arange(LENGTH).view(1, LENGTH, 1)
    j = torch.arange(LENGTH).view(1, 1, LENGTH)
    seen = (j <= i) & (j >= starts.unsqueeze(2)) & (j > i - (window or LENGTH))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -1e30).unsqueeze(1)


def loss_of(model, tokens, targets, starts):
    mask = None if starts is None else document_mask(starts, model.dtype, getattr(model.config, "sliding_window", None))
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def named(model):
    return {name.removeprefix("transformer."): parameter for name, parameter in model.named_parameters()}


def take_step(model, optimizer, tokens, targets, starts):
    """Returns the loss before it and the norm of its gradient before clipping."""
    optimizer.zero_grad()
    loss = loss_of(model, tokens, targets, starts)
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    for parameter in model.parameters():
        parameter.grad *= min(1.0, ADAMW["gradient_clipping"] / norm)
    optimizer.step()
    return loss.detach(), norm


def add_sgd_steps(model, initial, tensors, batches):
    """The same ten steps by SGD with momentum. PyTorch adds weight decay to the gradient, which is another rule than ours: none."""
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), initial):
            parameter.copy_(values)
    optimizer = torch.optim.SGD(model.parameters(), lr=SGD["lr"], momentum=SGD["momentum"], foreach=False)
    steps = [take_step(model, optimizer, *(part[step] for part in batches)) for step in range(1, STEPS + 1)]
    tensors["sgd_losses"] = torch.stack([loss for loss, _ in steps])
    tensors["sgd_gradient_norms"] = torch.tensor([norm for _, norm in steps], dtype=torch.float64)
    for key, parameter in named(model).items():
        tensors["sgd_final/" + key] = parameter.detach().float().clone()


class Both:
    """Muon for the matrices of layers, AdamW for the rest."""

    def __init__(self, model):
        matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and (".h." in name or ".layers." in name)]
        rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
        self.muon = torch.optim.Muon(matrices, lr=ADAMW["lr"], weight_decay=ADAMW["weight_decay"], momentum=MUON["momentum"],
                                     adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(
            [{"params": [p for p in rest if p.dim() == 2], "weight_decay": ADAMW["weight_decay"]},
             {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0}],
            lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"], foreach=False)

    def zero_grad(self):
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def step(self):
        bfloat16, torch.bfloat16 = torch.bfloat16, torch.float64  # PyTorch's Muon multiplies in what goes by this name
        self.muon.step()
        torch.bfloat16 = bfloat16
        self.adamw.step()


def add_muon_steps(model, initial, tensors, batches):
    """The same ten steps by Muon."""
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), initial):
            parameter.copy_(values)
    optimizer = Both(model)
    steps = [take_step(model, optimizer, *(part[step] for part in batches)) for step in range(1, STEPS + 1)]
    tensors["muon_losses"] = torch.stack([loss for loss, _ in steps])
    tensors["muon_gradient_norms"] = torch.tensor([norm for _, norm in steps], dtype=torch.float64)
    for key, parameter in named(model).items():
        tensors["muon_final/" + key] = parameter.detach().float().clone()


def write(name, model, described):
    with torch.no_grad():  # rounded to float, so that both sides start from the same numbers
        for parameter in model.parameters():
            matrix = parameter.dim() == 2
            centre = 1.0 if not matrix and parameter.mean() == 1 else 0.0
            values = centre + torch.randn(parameter.shape, dtype=torch.float64) * (0.15 if matrix else 0.1)
            parameter.copy_(values.float())
    tokens, targets, starts = make_batches(described["vocab_size"])
    unchanged = loss_of(model, tokens[0], targets[0], starts[0])  # Hugging Face's own arithmetic, in float
    keep_double(described["model_type"])
    model = model.double().train()
    tensors = {"tokens": tokens.int(), "targets": targets.int(), "document_start": starts.int()}
    for key, parameter in named(model).items():
        tensors["initial/" + key] = parameter.detach().float().clone()

    tensors["loss_without_documents"] = loss_of(model, tokens[0], targets[0], None).detach().reshape(1)
    loss = loss_of(model, tokens[0], targets[0], starts[0])
    loss.backward()
    assert abs(loss - unchanged) < 1e-5, "keep_double changed the model"
    losses = [loss.detach()]
    for key, parameter in named(model).items():
        tensors["gradient/" + key] = parameter.grad.float().clone()

    initial = [parameter.detach().clone() for parameter in model.parameters()]
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": ADAMW["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"], foreach=False)
    norms = []
    for step in range(1, STEPS + 1):
        loss, norm = take_step(model, optimizer, tokens[step], targets[step], starts[step])
        losses.append(loss)
        norms.append(norm)
    tensors["losses"] = torch.stack(losses)
    tensors["gradient_norms"] = torch.tensor(norms, dtype=torch.float64)
    for key, parameter in named(model).items():
        tensors["final/" + key] = parameter.detach().float().clone()
    if described["model_type"] == "gpt2":
        add_sgd_steps(model, initial, tensors, (tokens, targets, starts))
    if described["model_type"] in ("gpt2", "llama"):
        add_muon_steps(model, initial, tensors, (tokens, targets, starts))

    metadata = {"config": json.dumps(described), "optimizer": json.dumps(ADAMW),
                "versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    path = FOLDER / f"{name}.safetensors"
    save_file(tensors, path, metadata=metadata)
    print(f"{path.name}: {path.stat().st_size:,} bytes, losses {losses[0]:.6f} to {losses[-1]:.6f}, "
          f"norms {min(norms):.3f} to {max(norms):.3f}, without documents {tensors['loss_without_documents'][0]:.6f}")


def main():
    torch.manual_seed(20240520)
    torch.use_deterministic_algorithms(True)
    for make in (llama, gpt2, qwen2, qwen3, mistral):
        write(make.__name__, *make())


if __name__ == "__main__":
    main()
