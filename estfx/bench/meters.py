"""What is measured beside time: peak memory, compilations, and the fastest matrix products of a device."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch._dynamo.utils import counters

__all__ = ["compilations", "peak_bytes", "peak_flops", "synchronize"]

# Dense bfloat16 FLOPs per second, as their makers state them (NVIDIA and AMD data sheets), by a part of the name.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compilations() -> int:
    """How many graphs torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that was in use at once while `work` ran, over what was in use before it.

    On CUDA of the allocator; on the CPU of the whole process as Linux counts it, which is coarse. None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        REFERENCES.write_text("5")  # lowers the high-water mark to what is in use now
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    work()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


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
