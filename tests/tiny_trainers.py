"""Trainers of transformers on random tokens, with a small evolving GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_decoders import build
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import estfx
from estfx.integrations.transformers import EvolvingCallback
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STEPS = 9
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=3, heads=0.5, neurons=0.5), Stage(start=6)],
    total_steps=STEPS,
)
WHOLE = Schedule(stages=[Stage(start=0)], total_steps=STEPS)


class Tokens(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, size: int = 64) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(101, (12,), generator=torch.Generator().manual_seed(index))
        labels = tokens.clone()
        labels[0] = -100  # predicted by nothing, but Trainer would count it
        return {"input_ids": tokens, "labels": labels}


def gpt2(**options: Any) -> Any:
    return build("gpt2", n_layer=4, **options)


def evolving(schedule: Schedule = SCHEDULE, seed: int = 0, **options: Any) -> Any:
    return estfx.transform(gpt2(**options), schedule, seed=seed, compile=False)


def trainer_of(
    model: nn.Module,
    folder: Path,
    *callbacks: TrainerCallback,
    rows: int = 64,
    kind: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    arguments = TrainingArguments(output_dir=str(folder), **(defaults | options))
    own = [] if not isinstance(model, estfx.EvolvingModel) else [EvolvingCallback()]
    if any(isinstance(callback, EvolvingCallback) for callback in callbacks):
        own = []
    return kind(
        model=model,
        args=arguments,
        train_dataset=Tokens(rows),
        eval_dataset=Tokens(8),
        callbacks=[*own, *callbacks],
    )
