"""Runs a function on several ranks of torch.distributed, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

SECONDS = 60  # that a rank waits for the others before it fails


def _rank(rank: int, folder: str, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=SECONDS),
    )
    try:
        torch.save(function(*args), f"{folder}/{rank}")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def on_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """What a function of a module gives on each rank. It may ask torch.distributed which one it is."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (folder, world_size, function, args), nprocs=world_size)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world_size)]
