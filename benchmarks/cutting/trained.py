"""The models that are cut, and the text that they are trained, calibrated and judged on.

A GPT-2, a Llama with grouped queries and one without (multi-head attention), trained on the text of Python's own
standard library with bytes as tokens. They are as large as one core trains in half an hour.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from estfx.training import Blocks, corpus_of, documents

__all__ = ["LENGTH", "NAMES", "Batches", "Text", "held_out", "in_layers", "loss_of", "train", "trained"]

NAMES = ("gpt2", "llama", "llama-mha")
LENGTH, BATCH = 128, 16
RATE = 2e-3
Batches = list[dict[str, torch.Tensor]]


def built(name: str, *, layers: int = 6, width: int = 128) -> Any:
    if name == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_layer=layers,
                n_embd=width,
                n_head=8,
                vocab_size=257,
                n_positions=LENGTH,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=256,
                eos_token_id=256,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=16 if name == "llama" else 8,
            num_key_value_heads=8,
            vocab_size=257,
            max_position_embeddings=LENGTH,
            bos_token_id=256,
            eos_token_id=256,
        )
    )


class Text:
    """Blocks to train on and to judge by; a text is in one of the two."""

    def __init__(self) -> None:
        corpus = corpus_of(documents(["standard-library"], "text"))
        self.train, self.held_out = Blocks(corpus.train, LENGTH), Blocks(corpus.held_out, LENGTH)

    def drawn(self, seed: int) -> dict[str, torch.Tensor]:
        """A batch to train on."""
        generator = torch.Generator().manual_seed(seed)
        return batch_of(self.train, torch.randint(len(self.train), (BATCH,), generator=generator).tolist())

    def calibration(self, blocks: int = 64) -> Batches:
        return spread(self.train, blocks)

    def judge(self, blocks: int = 256) -> Batches:
        return spread(self.held_out, blocks)


def batch_of(blocks: Blocks, numbers: list[int]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.stack([blocks[number]["input_ids"] for number in numbers])}


def spread(blocks: Blocks, number: int) -> Batches:
    chosen = [i * len(blocks) // number for i in range(number)]
    return [batch_of(blocks, chosen[i : i + BATCH]) for i in range(0, number, BATCH)]


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, labels=batch["input_ids"], use_cache=False).loss  # type: ignore[no-any-return]


def held_out(model: Any, batches: Batches) -> float:
    """The mean loss in nats a byte."""
    model.eval()
    with torch.no_grad():
        return sum(float(loss_of(model, batch)) for batch in batches) / len(batches)


def train(model: Any, text: Text, steps: int, *, rate: float = RATE, first: int = 0, compiled: bool = False) -> None:
    """AdamW; the rate rises in the first twentieth of the steps and falls along half a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    runs = torch.compile(model) if compiled else model
    model.train()
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done * 20 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * done))
        loss = loss_of(runs, text.drawn(first + step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if compiled and step % 100 == 0:
            print(f"  step {step:5} of {steps}: {float(loss):.3f}", flush=True)
    model.eval()


def trained(
    name: str, text: Text, folder: Path, *, steps: int, seed: int = 0, layers: int = 6, width: int = 128
) -> Any:
    """From `folder`, where it was trained before; otherwise trained, and written there."""
    kept = folder / f"{name}-{layers}x{width}-{steps}-{seed}"
    if not (kept / "config.json").exists():
        torch.manual_seed(seed)
        model = built(name, layers=layers, width=width)
        train(model, text, steps, first=seed * 10**7, compiled=True)
        model.save_pretrained(kept)
    return AutoModelForCausalLM.from_pretrained(kept).eval()


def in_layers(model: Any) -> int:
    """Parameters of the layers: neither tables of tokens and positions nor norms and biases."""
    outer = {id(p) for part in (model.get_input_embeddings(), model.get_output_embeddings()) for p in part.parameters()}
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in outer | tables)
