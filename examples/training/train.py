"""Train a tiny reasoner from scratch on one CPU core and export it in Hugging Face format.

    python examples/training/train.py examples/tiny-reasoner

What it learns is the folder's `problems.py`.
"""

import argparse
import dataclasses
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from task import EOS, UNK, Task, load
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100
WARMUP = 100
FLAT = 0.4


@dataclasses.dataclass(frozen=True)
class Shape:
    """Model size."""

    vocabulary: int
    positions: int
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    mlp: int = 384
    theta: float = 10000.0


class Block(nn.Module):
    """One Llama decoder layer, its parameters named as Hugging Face names them."""

    def __init__(self, shape: Shape) -> None:
        """Create the layer's weights."""
        super().__init__()
        self.heads = shape.heads
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.self_attn = nn.ModuleDict(
            {f"{n}_proj": nn.Linear(shape.hidden, shape.hidden, bias=False) for n in "qkvo"}
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(shape.hidden, shape.mlp, bias=False),
                "up_proj": nn.Linear(shape.hidden, shape.mlp, bias=False),
                "down_proj": nn.Linear(shape.mlp, shape.hidden, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend, then transform, adding each to the stream."""
        batch, length, hidden = x.shape
        normed = self.input_layernorm(x)
        q, k, v = (
            self.self_attn[f"{n}_proj"](normed).view(batch, length, self.heads, -1).transpose(1, 2)
            for n in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        x = x + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(batch, length, hidden))
        normed = self.post_attention_layernorm(x)
        gated = functional.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        return x + self.mlp["down_proj"](gated)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class Llama(nn.Module):
    """A Llama with tied input and output embeddings."""

    def __init__(self, shape: Shape) -> None:
        """Create and initialise all weights."""
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        half = torch.arange(0, shape.hidden // shape.heads, 2) / (shape.hidden // shape.heads)
        angles = torch.outer(torch.arange(shape.positions).float(), shape.theta**-half).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.04 / math.sqrt(2 * shape.layers) if last else 0.04)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        length = tokens.shape[1]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def batch_of(
    rows: list[tuple[str, str]], ids: dict[str, int], longest: int
) -> tuple[Tensor, Tensor]:
    """Padded inputs and next-token targets, cut at `longest`; only the solution carries loss."""
    coded = [([ids[c] for c in asked], [ids[c] for c in worked]) for asked, worked in rows]
    length = min(max(len(asked) + len(worked) + 1 for asked, worked in coded), longest)
    tokens = torch.full((len(rows), length), ids[EOS])
    targets = torch.full((len(rows), length), IGNORE)
    for i, (asked, worked) in enumerate(coded):
        row = torch.tensor([*asked, *worked, ids[EOS], IGNORE][: length + 1])
        tokens[i, : len(row) - 1] = row[:-1]
        targets[i, len(asked) - 1 : len(row) - 1] = row[len(asked) :]
    return tokens, targets


def rate(step: int, schedule: int) -> float:
    """Learning rate, as a share of its peak: a short rise, a flat part, a linear fall to 2%."""
    fallen = max(0.0, (min(step / schedule, 1.0) - FLAT) / (1.0 - FLAT))
    return min(step / WARMUP, 1.0) * (1.0 - 0.98 * fallen)


def export(model: Llama, shape: Shape, ids: dict[str, int], out: Path) -> None:
    """Write a Hugging Face model folder, whole, then move it into place."""
    temp = out.with_name(out.name + ".tmp")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    weights = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(weights, temp / "model.safetensors", metadata={"format": "pt"})
    special = [
        {"id": ids[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for t in (EOS, UNK)
    ]
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "head_dim": shape.hidden // shape.heads,
            "hidden_act": "silu",
            "max_position_embeddings": shape.positions,
            "rope_theta": shape.theta,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": ids[EOS],
            "pad_token_id": ids[EOS],
            "torch_dtype": "float32",
        },
        "generation_config.json": {"eos_token_id": ids[EOS], "pad_token_id": ids[EOS]},
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNK},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": EOS,
            "unk_token": UNK,
            "model_max_length": shape.positions,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (temp / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    temp.rename(out)


def train(task: Task, out: Path, lr: float, seed: int, steps: int, export_every: int) -> None:
    """Train, logging the loss, and export at intervals and at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    ids = {token: i for i, token in enumerate(task.VOCAB)}
    plan = task.TRAINING
    shape = Shape(vocabulary=len(ids), positions=plan.positions)
    model = Llama(shape)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.perf_counter()
    logged = tokens_seen = 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, plan.schedule)
        if step <= plan.begin_steps:
            rows = [row for _ in range(plan.begin_batches) for row in task.rows(rng)]
            tokens, targets = batch_of(rows, ids, plan.begin_tokens)
        else:
            tokens, targets = batch_of(task.rows(rng), ids, plan.positions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        logged += loss.item()
        tokens_seen += tokens.numel()
        if step % 100 == 0:
            spent = time.perf_counter() - start
            print(
                f"step {step} loss {logged / 100:.4f} {spent:.0f}s {tokens_seen / spent:.0f} tok/s",
                flush=True,
            )
            logged = 0.0
        if step % export_every == 0 or step == steps:
            export(model, shape, ids, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the reasoner's folder")
    parser.add_argument("--out", type=Path, help="model folder to write; default: FOLDER/model")
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-every", type=int, default=1000, help="steps between exports")
    args = parser.parse_args()
    task = load(args.folder)
    out = args.out or args.folder / "model"
    train(task, out, args.lr, args.seed, args.steps or task.TRAINING.steps, args.export_every)


if __name__ == "__main__":
    main()
