"""Learning rates of a run in stages: their shape, and whether they fall with the steps or with the FLOPs spent."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from estfx.costs import Plan

__all__ = ["LearningRate"]

DECAY = 0.2  # the share of the run in which the rate falls, with the shape warmup_stable_decay

_SHAPES: dict[str, Callable[[float], float]] = {  # the factor, by how far the run is: from 1 at 0 to 0 at 1
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "warmup_stable_decay": lambda done: min(1.0, (1.0 - done) / DECAY),
}


@dataclass(frozen=True)
class LearningRate:
    """The factor on the peak learning rate at each optimizer step."""

    plan: Plan
    warmup_steps: int  # of a linear warm-up from 0
    shape: Literal["cosine", "linear", "warmup_stable_decay"] = "cosine"
    falls_with: Literal["steps", "flops"] = "steps"
    rewarm_steps: int = 0  # of a linear warm-up from 0 at the beginning of each later stage

    def __call__(self, step: int) -> float:
        """The factor at `step`, from 0; 0 at and after the end of the run."""
        if step < self.warmup_steps:
            return step / max(1, self.warmup_steps)
        begun, end = self._spent(self.warmup_steps), self._spent(self.plan.stages[-1].stop)
        done = min(1.0, (self._spent(step) - begun) / max(end - begun, 1.0))
        return max(0.0, _SHAPES[self.shape](done)) * self._rewarmed(step)

    def _spent(self, step: int) -> float:
        return float(step) if self.falls_with == "steps" else self.plan.flops_until(step)

    def _rewarmed(self, step: int) -> float:
        start = self.plan.stages[max(0, bisect_right(self.plan.stages, step, key=lambda stage: stage.start) - 1)].start
        return 1.0 if start == 0 else min(1.0, (step - start + 1) / (self.rewarm_steps + 1))
