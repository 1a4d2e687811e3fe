"""What was measured of the presets' losses, for runs of several lengths and sizes, and a law that was fitted to them.

The figures are those of docs/quality.md: `benchmarks/quality/measured_map.py` writes them from the stored runs. A loss
is in nats a byte of held-out text, above that of the whole model trained for as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FittedLaw", "KindOfRun", "MeasuredLoss", "MeasuredLosses", "MeasuredRun", "measured_losses"]

ALIKE = 2.0  # numbers that differ by no more than this factor count as alike


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredLoss(_Figures):
    """What a schedule lost in one kind of run."""

    above_dense: float
    low: float | None  # of an interval of 95 %; None with one seed or two
    high: float | None
    seeds: int
    saving: float  # the share of the whole model's FLOPs
    no_worse: Literal["holds", "does not", "not decided"]  # the claim that it is no worse than the whole model


class KindOfRun(_Figures):
    """What makes the losses of two runs alike or not."""

    family: str | None  # of the model, as transformers names it; None if it is none of theirs
    parameters: int
    steps: int
    tokens_per_parameter: float
    tokens_per_step: int


class MeasuredRun(KindOfRun):
    """A model and a length of run, with what was measured of it."""

    title: str  # the model's, in words
    dense_short: float | None  # what the whole model loses if it is trained for as few FLOPs
    presets: Mapping[str, MeasuredLoss]

    def unlike(self, kind: KindOfRun) -> Iterator[str]:
        """In what another run is unlike this one: its family, and what differs by more than a factor of two."""
        if kind.family is not None and kind.family != self.family:
            yield f"a {kind.family} (there {self.family})"
        for name in ("parameters", "steps", "tokens_per_parameter", "tokens_per_step"):
            here, there = getattr(kind, name), getattr(self, name)
            if not 1 / ALIKE <= here / there <= ALIKE:
                what = name.replace("_per_parameter", " a parameter").replace("_per_step", " a step")
                yield f"{_rounded(here)} {what} (there {_rounded(there)})"


class FittedLaw(_Figures):
    """What a preset loses falls as a power of the steps: log(loss) = intercept + slope · log2(steps)."""

    preset: str
    family: str  # of the models, as transformers names it
    intercept: float
    slope: float
    spread: float  # standard deviation of the residuals
    mean: float  # of log2(steps), over the points
    squares: float  # the sum of their squared distances from it
    points: int
    quantile: float  # of Student's t, for an interval of 95 %
    first: int  # fewest steps of a point
    last: int  # most

    def at(self, steps: int) -> tuple[float, float, float]:
        """What is lost after so many steps, and the interval of 95 % in which another measurement lies."""
        place = math.log2(steps)
        middle = self.intercept + self.slope * place
        half = self.quantile * self.spread * math.sqrt(1 + 1 / self.points + (place - self.mean) ** 2 / self.squares)
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


class MeasuredLosses(_Figures):
    """All that was measured, and which preset follows from it."""

    default: str  # the preset that lost least most often
    default_won: int  # in how many kinds of runs
    default_of: int  # of those in which it was tried beside another
    default_rivals: Mapping[str, int]  # in how many of these each of the others was tried
    laws: tuple[FittedLaw, ...]
    runs: tuple[MeasuredRun, ...]

    def nearest(self, presets: Collection[str], kind: KindOfRun) -> MeasuredRun | None:
        """The run most like this one of those made with all these presets; None if there is none.

        One of the same family, if there is one; then by the ratios of the steps and of the tokens a parameter. Of
        the runs that differ from the nearest by no more than a factor of two in both, it is the one with most seeds.
        """
        made = [run for run in self.runs if run.presets.keys() >= set(presets)]
        own = [run for run in made if run.family == kind.family] or made

        def apart(run: MeasuredRun, other: KindOfRun) -> tuple[float, float]:
            ratios = (run.steps / other.steps, run.tokens_per_parameter / other.tokens_per_parameter)
            steps, tokens = (abs(math.log2(ratio)) for ratio in ratios)  # in factors of two
            return steps, tokens

        def order(run: MeasuredRun) -> tuple[int, float, int]:
            seeds = min(run.presets[name].seeds for name in presets)
            return seeds, -round(math.hypot(*apart(run, kind)), 1), run.parameters

        if not own:
            return None
        nearest = min(own, key=lambda run: math.hypot(*apart(run, kind)))
        return max((run for run in own if max(apart(run, nearest)) <= math.log2(ALIKE)), key=order)

    @property
    def why(self) -> str:
        """Why the default is the default."""
        rivals = ", ".join(f"{name} in {number}" for name, number in self.default_rivals.items())
        won = "each" if self.default_won == self.default_of else f"{self.default_won}"
        return (
            f"{self.default} lost least in {won} of the {self.default_of} kinds of runs in which it was tried beside "
            f"another schedule that saves as much ({rivals})"
        )

    def why_default(self, kind: KindOfRun) -> str:
        """Why a run that names no schedule has the default, and in what it is unlike what was measured."""
        nearest = self.nearest([self.default], kind)
        unlike = "" if nearest is None else ", ".join(nearest.unlike(kind))
        return f"{self.why}; this run is unlike the nearest of them: {unlike}" if unlike else self.why

    def law(self, preset: str) -> FittedLaw | None:
        """The law of a preset, if one was fitted."""
        return next((law for law in self.laws if law.preset == preset), None)


@cache
def measured_losses() -> MeasuredLosses:
    """What was measured so far."""
    text = resources.files("estfx.schedules").joinpath("measured_losses.json").read_text(encoding="utf-8")
    return MeasuredLosses.model_validate_json(text)


def _rounded(number: float) -> str:
    return f"{float(f'{number:.2g}'):,}".removesuffix(".0")
