"""What is measured beside time: peak memory, compilations, and the fastest matrix products of a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from estfx.costs import PEAKS

__all__ = ["Memory", "compilations", "memory_of", "peak_flops", "synchronize"]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compilations() -> int:
    """How many graphs torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors, over what there was before."""

    peak: int  # most at once
    left: int  # still there at the end; after a forward pass, what the backward pass will read


def memory_of(work: Callable[[], object], device: torch.device) -> Memory | None:
    """What tensors take while `work` runs and what they still take when it has returned; None if not known.

    On CUDA as the allocator counts it, on the CPU summed up from every allocation that torch's profiler notes.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        synchronize(device)
        left = torch.cuda.memory_allocated(device) - before
        del result
        return Memory(torch.cuda.max_memory_allocated(device) - before, left)
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        result = work()
    assert watched.profiler is not None
    assert watched.profiler.kineto_results is not None
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    in_use = [0, *accumulate(int(event.nbytes()) for event in events)]
    del result
    return Memory(max(in_use), in_use[-1])


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOPs per second that matrix products can reach, and where that figure is from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"as its maker states it for {part}"
    return _fastest_product(device, dtype), "the fastest square matrix product measured in this run"


def _fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
