"""Speed of a model by stage, against the original and against what else makes training cheaper; in one run."""

from estfx.bench.measure import bench
from estfx.bench.result import ArmResult, BenchFailedError, BenchResult
from estfx.bench.settings import ARMS, BenchSettings

__all__ = ["ARMS", "ArmResult", "BenchFailedError", "BenchResult", "BenchSettings", "bench"]
