"""Measuring what a step costs in each stage, against the compiled original.

In go `BenchSettings`; out comes a `BenchResult` with seconds, memory and FLOPs by stage.
Its doors are loaded when they are first asked for, so that settings are checked before torch is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from estfx.lazy_names import lazy_names

if TYPE_CHECKING:
    from estfx.bench.measure import bench as bench
    from estfx.bench.meters import memory_of as memory_of
    from estfx.bench.meters import synchronize as synchronize
    from estfx.bench.result import ArmResult as ArmResult
    from estfx.bench.result import BenchFailedError as BenchFailedError
    from estfx.bench.result import BenchResult as BenchResult
    from estfx.bench.result import mfu_measured as mfu_measured
    from estfx.bench.settings import ARMS as ARMS
    from estfx.bench.settings import BenchSettings as BenchSettings
    from estfx.bench.table import print_result as print_result

_MODULES = {
    "ARMS": "estfx.bench.settings",
    "ArmResult": "estfx.bench.result",
    "BenchFailedError": "estfx.bench.result",
    "BenchResult": "estfx.bench.result",
    "BenchSettings": "estfx.bench.settings",
    "bench": "estfx.bench.measure",
    "memory_of": "estfx.bench.meters",
    "mfu_measured": "estfx.bench.result",
    "print_result": "estfx.bench.table",
    "synchronize": "estfx.bench.meters",
}
__all__ = [
    "ARMS",
    "ArmResult",
    "BenchFailedError",
    "BenchResult",
    "BenchSettings",
    "bench",
    "memory_of",
    "mfu_measured",
    "print_result",
    "synchronize",
]

if not TYPE_CHECKING:  # a type checker would take any name for a door
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
