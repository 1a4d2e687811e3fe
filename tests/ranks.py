"""Runs functions on several ranks of torch.distributed, on the CPU, in processes that stay for the next ones."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from shared_traces import shared_traces
from torch import multiprocessing

SECONDS = 120  # that a rank waits for the others, and a test for the ranks, before it fails


def _work(rank: int, world_size: int, folder: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=SECONDS),
    )
    while True:
        function, args = pipe.recv()
        try:
            with shared_traces():
                result = function(*args)
            dist.barrier()
        except BaseException:
            pipe.send((traceback.format_exc(), None))
        else:
            pipe.send((None, result))


class _Ranks:
    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.mkdtemp()
        pairs = [context.Pipe() for _ in range(world_size)]
        self.pipes = [own for own, _ in pairs]
        self.processes = [
            context.Process(target=_work, args=(rank, world_size, self.folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        atexit.register(self.close)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(SECONDS):
                raise AssertionError(f"rank {rank} gave no answer within {SECONDS} s")
            error, result = pipe.recv()
            if error is not None:
                raise AssertionError(f"on rank {rank}:\n{error}")
            results.append(result)
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def _ranks(world_size: int) -> _Ranks:
    return _Ranks(world_size)


@contextmanager
def as_torchrun() -> Iterator[None]:
    """On a rank: the variables that torchrun sets, and afterwards nothing left of what accelerate makes of them."""
    before = dict(os.environ)
    os.environ |= {
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",  # the ranks have met already
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state(reset_partial_state=True)


def on_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """What a function of a module gives on each rank. It may ask torch.distributed which one it is."""
    ranks = _ranks(world_size)
    try:
        return ranks.run(function, args)
    except BaseException:
        ranks.close()  # they may wait for each other
        _ranks.cache_clear()
        raise
