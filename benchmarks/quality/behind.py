"""How many steps an arm is behind dense, while it is trained and at its end: where a saving's loss comes from.

All arms of an experiment see the same data in the same order, so that the difference of their training losses at a step
has little noise. What it means in steps is read off dense's own course: a + b · step ** -c, fitted to its training
losses while its learning rate is held, by least squares. An arm whose loss at step 700 is that of dense at 580 is
120 steps behind. At the end, where the learning rate has fallen, they follow from how many steps dense needs, its own
learning rate decayed over them, to have the arm's held-out loss (`steps_needed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Course",
    "Lag",
    "Results",
    "Runs",
    "lag_of",
    "lag_table",
    "lags_over_time",
    "losses_above",
    "steps_behind",
    "steps_needed",
]

SHAPE = "warmup_stable_decay"
WINDOW = 0.05  # the share of the run over which differences are averaged
EXPONENTS = np.linspace(0.05, 2.0, 79)
Runs = dict[int, dict[str, Any]]  # an arm's, by seed
Results = dict[str, Runs]  # by arm
# as dense has it
SAME = ("total_steps", "batch_size", "learning_rate", "learning_rate_shape", "decay_share", "weight_decay")


@dataclass(frozen=True)
class Course:
    """A training loss by the step: floor + scale · step ** -exponent."""

    floor: float
    scale: float
    exponent: float

    @classmethod
    def of(cls, result: dict[str, Any]) -> Course:
        """The course of a run whose learning rate is held until it falls, from its warm-up until then."""
        first, last = 1.5 * WINDOW * result["steps"], _held(result)
        held = [(step, loss) for step, loss in result["train_loss"] if first <= step < last]
        steps_N, losses_N = map(np.array, zip(*held, strict=True))
        fits = []
        for exponent in EXPONENTS:
            terms_N2 = np.stack([np.ones(len(steps_N)), steps_N**-exponent], axis=1)
            (floor, scale), *_ = np.linalg.lstsq(terms_N2, losses_N, rcond=None)
            error = float(((terms_N2 @ [floor, scale] - losses_N) ** 2).sum())
            fits.append((error, cls(float(floor), float(scale), float(exponent))))
        return min(fits, key=lambda fit: fit[0])[1]

    def step_of(self, step: float, more: float) -> float:
        """Where the loss is `more` above that at `step`."""
        above = self.scale * step**-self.exponent + more
        return (above / self.scale) ** (-1 / self.exponent) if above > 0 else math.inf


@dataclass(frozen=True)
class Lag:
    """Steps behind dense: on average over seeds."""

    seeds: int
    grown_at: int  # the step at which the whole model begins to be trained
    saved: float  # steps of the whole model whose FLOPs were not spent
    before: float  # as that step comes
    after: float  # a tenth of the run later
    held: float  # as the learning rate begins to fall
    end: float | None  # of the seeds that dense-short has too; None without any
    extrapolated: bool = False  # the last: dense was not trained for so few steps


def steps_behind(arm: dict[str, Any], dense: dict[str, Any], course: Course, until: float) -> float:
    """By how many steps the arm is behind in the window that ends at the step `until`."""
    begins = until - WINDOW * dense["steps"]
    of_dense = {step: loss for step, loss in dense["train_loss"] if begins <= step < until}
    more = np.mean([loss - of_dense[step] for step, loss in arm["train_loss"] if step in of_dense])
    middle = until - WINDOW * dense["steps"] / 2
    return float(middle - course.step_of(middle, float(more)))


def steps_needed(lost: float, lost_by_short: float, share: float) -> float:
    """The share of its steps after which dense has lost as much, if it loses `lost_by_short` with `share` of them."""
    return float(share ** (lost / lost_by_short))


def comparable(arm: dict[str, Any], dense: dict[str, Any]) -> bool:
    """Whether an arm's steps can be set against dense's.

    They can if it is trained as dense is, with a learning rate that is held, in stages of which the last alone is the
    whole model, and if that begins before the learning rate falls.
    """
    settings, its = (run["config"]["train"] for run in (arm, dense))
    if its.get("learning_rate_shape") != SHAPE or any(settings.get(name) != its.get(name) for name in SAME):
        return False
    *parts, last = (stage["flops_of_whole_model"] for stage in arm["stages"])
    grown_at = arm["stages"][-1]["start"]
    return bool(parts) and last == 1.0 > max(parts) and grown_at + 2 * WINDOW * dense["steps"] <= _held(dense)


def _held(dense: dict[str, Any]) -> float:
    """Until when the learning rate is held."""
    return float((1 - dense["config"]["train"]["decay_share"]) * dense["steps"])


def losses_above(one: Runs, other: Runs, seeds: Iterable[int]) -> np.ndarray[Any, Any]:
    """By how much one arm's held-out losses are above another's, for each of the seeds and each block of text."""
    return np.array([np.subtract(one[seed]["block_losses"], other[seed]["block_losses"]) for seed in seeds])


def _set_against(seeds: Runs, dense: Runs) -> list[tuple[dict[str, Any], dict[str, Any], Course]]:
    """An arm's runs, dense's with the same seeds, and those runs' courses; nothing if they cannot be compared."""
    pairs = [(seeds[seed], dense[seed]) for seed in sorted(seeds.keys() & dense.keys())]
    if not all(comparable(arm, whole) for arm, whole in pairs):
        return []
    return [(arm, whole, Course.of(whole)) for arm, whole in pairs]


def lags_over_time(seeds: Runs, dense: Runs) -> list[tuple[float, float]]:
    """The steps behind dense at the end of each window while the learning rate is held: means over seeds."""
    runs = _set_against(seeds, dense)
    if not runs:
        return []
    whole = runs[0][1]
    window = WINDOW * whole["steps"]
    ends = map(float, np.arange(2 * window, _held(whole) + 1, window))
    return [(end, float(np.mean([steps_behind(*run, end) for run in runs]))) for end in ends]


def lag_of(seeds: Runs, results: Results) -> Lag | None:
    """How an arm falls behind dense and catches up; None if its steps cannot be set against dense's."""
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    runs = _set_against(seeds, dense)
    if not runs:
        return None
    arm, whole, _ = runs[0]
    steps, grown_at = whole["steps"], arm["stages"][-1]["start"]
    moments = (grown_at, grown_at + 2 * WINDOW * steps, _held(whole))
    before, after, held = (float(np.mean([steps_behind(*run, until) for run in runs])) for until in moments)
    end, extrapolated = None, False
    if both := sorted(seeds.keys() & dense.keys() & short.keys()):
        lost, lost_by_short = (float(losses_above(one, dense, both).mean()) for one in (seeds, short))
        if lost_by_short > 0:
            end = steps * (1 - steps_needed(lost, lost_by_short, short[both[0]]["steps"] / steps))
            extrapolated = not 0 <= lost <= lost_by_short
    saved = whole["whole_steps"]["model"] - arm["whole_steps"]["model"]
    return Lag(len(runs), grown_at, saved, before, after, held, end, extrapolated)


def lag_table(experiments: Iterable[tuple[str, Results, Results]]) -> Iterator[str]:
    """One line for every arm whose lag is known. Of an experiment: its title, its arms, and them with those beside."""
    heads = ("model", "arm", "seeds", "steps", "whole from", "steps saved", "behind when it grows")
    yield f"| {' | '.join(heads)} | a tenth of the run later | when the rate falls | at the end |"
    yield f"|{'---|' * (len(heads) + 3)}"
    for title, own, results in experiments:
        for arm, seeds in own.items():
            lag = lag_of(seeds, results)
            if lag is None:
                continue
            steps = next(iter(seeds.values()))["steps"]
            cells = [title, arm, str(lag.seeds), f"{steps:,}", f"{lag.grown_at:,}"]
            behind = (lag.saved, lag.before, lag.after, lag.held, lag.end)
            cells += ["" if number is None else f"{number:,.0f}" for number in behind]
            cells[-1] += " (extrapolated)" if lag.extrapolated else ""
            yield f"| {' | '.join(cells)} |"
