"""Measuring what a step costs in each stage, against the compiled original.

In go `BenchSettings`; out comes a `BenchResult` with seconds, memory and FLOPs by stage.
"""

from estfx.bench.measure import bench
from estfx.bench.meters import memory_of, synchronize
from estfx.bench.result import ArmResult, BenchFailedError, BenchResult
from estfx.bench.settings import ARMS, BenchSettings
from estfx.bench.table import print_result

__all__ = [
    "ARMS",
    "ArmResult",
    "BenchFailedError",
    "BenchResult",
    "BenchSettings",
    "bench",
    "memory_of",
    "print_result",
    "synchronize",
]
