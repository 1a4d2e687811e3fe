"""Losses against steps, tokens, FLOPs and seconds, in few enough points to be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estfx.run_report.runs import Run

__all__ = ["AXES", "Curves", "Floats", "curves_of"]

POINTS = 400  # of a curve; a longer one is drawn as the means of as many steps each
AXES = ("step", "tokens", "flops", "seconds")
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """What a run's losses are drawn from. A loss stands where the weights it was taken with were reached."""

    at: dict[str, Floats]  # by axis: where each point of the training loss stands
    loss: Floats
    smoothed: Floats
    held_out_at: dict[str, Floats]
    held_out: Floats
    steps_per_point: int
    smoothed_over: int  # steps
    slowest: Floats  # seconds of the slowest step of each point
    stages: tuple[tuple[int, dict[str, tuple[float, float]]], ...]  # number from 1; by axis from where to where


def curves_of(run: Run) -> Curves:
    """Sums tokens, FLOPs and seconds up over the steps done."""
    steps = run.steps
    sums = {
        name: np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)])
        for name, column in (("tokens", steps.tokens), ("flops", steps.flops), ("seconds", steps.seconds))
    }
    sums["step"] = np.append(steps.step, steps.step[-1] + 1).astype(np.float64)
    span = max(5, len(steps) // 50)
    done = np.array([step for step, _ in run.held_out], dtype=np.int64)
    places = np.searchsorted(steps.step, done)  # how many steps had been done
    stages = []
    for number in np.unique(steps.stage):
        first, last = np.flatnonzero(steps.stage == number)[[0, -1]]
        stages.append((int(number), {axis: (float(sums[axis][first]), float(sums[axis][last + 1])) for axis in AXES}))
    return Curves(
        at={axis: _thinned(sums[axis][:-1]) for axis in AXES},
        loss=_thinned(steps.loss),
        smoothed=_thinned(_smoothed(steps.loss, span)),
        held_out_at={axis: sums[axis][places] for axis in AXES},
        held_out=np.array([loss for _, loss in run.held_out], dtype=np.float64),
        steps_per_point=_steps_per_point(len(steps)),
        smoothed_over=span,
        slowest=np.maximum.reduceat(steps.seconds, _starts(len(steps))),
        stages=tuple(stages),
    )


def _thinned(values: NDArray[np.float64] | NDArray[np.int64]) -> Floats:
    """Means over equally many values each, `POINTS` of them at most."""
    starts = _starts(len(values))
    counts = np.diff(np.append(starts, len(values)))
    means: Floats = np.add.reduceat(values.astype(np.float64), starts) / counts
    return means


def _starts(steps: int) -> NDArray[np.int64]:
    return np.arange(0, steps, _steps_per_point(steps))


def _steps_per_point(steps: int) -> int:
    return -(-steps // POINTS)


def _smoothed(values: Floats, span: int) -> Floats:
    """An exponential moving mean without the bias of its beginning; what is not finite is passed over."""
    decay = 1 - 2 / (span + 1)
    total = weight = 0.0
    means = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        if np.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        if weight:
            means[place] = total / weight
    return means
