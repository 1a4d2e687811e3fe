"""What the benchmarks measure seconds with: arms in turn, medians, and ratios taken repeat by repeat.

A slow moment of the machine then hits all arms, and a ratio compares what ran side by side.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from estfx.bench import synchronize

__all__ = ["arguments", "in_turn", "ratios", "seconds"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def seconds(work: Callable[[], object], device: str | torch.device) -> float:
    """How long it takes until what was begun on the device is done, too."""
    synchronize(torch.device(device))
    start = time.perf_counter()
    work()
    synchronize(torch.device(device))
    return time.perf_counter() - start


def in_turn(
    arms: Mapping[str, Callable[[int], float]], repeats: int, left_out: int = 0, first: int = 0
) -> dict[str, list[float]]:
    """What each arm gives for each repeat, all arms once before the next repeat; the first few repeats are left out.

    Repeats are counted from `first`.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(first, first + left_out + repeats):
        for name, arm in arms.items():
            times[name].append(arm(repeat))
    return {name: own[left_out:] for name, own in times.items()}


def ratios(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """For each arm the median of its seconds, and of their ratio to the reference's of the same repeat."""
    rows = {}
    for name, own in times.items():
        each = sorted(a / b for a, b in zip(own, times[reference], strict=True))
        rows[name] = {
            "seconds": statistics.median(own),
            "ratio": statistics.median(each),
            "ratio_min": each[0],
            "ratio_max": each[-1],
        }
    return rows
