"""Learning rates of a run in stages: their shape, and whether they fall with the steps or with the FLOPs spent."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from estfx.costs import Plan
from estfx.training.train_config import DECAY

__all__ = ["LearningRate"]

# the factor, by how far the run is, from 1 at 0 to 0 at 1, and by the share of it in which the rate falls
_SHAPES: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda done, _: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done, _: 1.0 - done,
    "warmup_stable_decay": lambda done, decay: min(1.0, (1.0 - done) / decay),
}


@dataclass(frozen=True)
class LearningRate:
    """The factor on the peak learning rate at each optimizer step."""

    plan: Plan
    warmup_steps: int  # of a linear warm-up from 0
    shape: Literal["cosine", "linear", "warmup_stable_decay"] = "cosine"
    falls_with: Literal["steps", "flops"] = "steps"
    rewarm_steps: int = 0  # of a linear warm-up from 0 at the beginning of each later stage
    decay_share: float = DECAY  # of the run after the warm-up, in which it falls, with warmup_stable_decay

    def __call__(self, step: int) -> float:
        """The factor at `step`, from 0; 0 at and after the end of the run."""
        if step < self.warmup_steps:
            return step / max(1, self.warmup_steps)
        begun, end = self._spent(self.warmup_steps), self._spent(self.plan.stages[-1].stop)
        done = min(1.0, (self._spent(step) - begun) / max(end - begun, 1.0))
        return max(0.0, _SHAPES[self.shape](done, self.decay_share)) * self._rewarmed(step)

    def _spent(self, step: int) -> float:
        return float(step) if self.falls_with == "steps" else self.plan.flops_until(step)

    def _rewarmed(self, step: int) -> float:
        start = self.plan.stages[max(0, bisect_right(self.plan.stages, step, key=lambda stage: stage.start) - 1)].start
        return 1.0 if start == 0 else min(1.0, (step - start + 1) / (self.rewarm_steps + 1))
