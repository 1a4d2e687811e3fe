"""Runs of `estfx train` that take a second, and what they leave in their folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from estfx.training.train_config import RunConfig
from estfx.training.training_run import train

STEPS = 12
TINY = (
    f"data.source={argparse.__file__}",  # little to read
    "model.config.num_hidden_layers=2",
    "model.config.hidden_size=16",
    "model.config.num_attention_heads=2",
    "model.config.resid_pdrop=0.1",  # random numbers, too, go on where they were
    "data.seq_len=16",
    "data.held_out_blocks=4",
    "train.batch_size=2",
    f"train.total_steps={STEPS}",
    "train.warmup_steps=2",
    "train.compile=false",
    "train.save_every=2",
    "schedule.preset=est",  # a part of its own at every step, which a resumed run has to find again
)


def run(folder: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    resume = options.get("resume", False)
    config = None if resume and not overrides else RunConfig.load(None, [*TINY, *overrides])
    return train(config, folder, Console(quiet=True), **options)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What was measured, without seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "compiled")} for line in lines]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    assert lines_of(one) == lines_of(other)
    weights, others = weights_of(one), weights_of(other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
