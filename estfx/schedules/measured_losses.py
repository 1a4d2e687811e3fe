"""What was measured of the presets' losses, for runs of several lengths and sizes, and a law that was fitted to them.

The figures are those of docs/quality.md: `benchmarks/quality/measured_map.py` writes them from the stored runs. A loss
is in nats a byte of held-out text, above that of the whole model trained for as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FittedLaw", "MeasuredLoss", "MeasuredLosses", "MeasuredRun", "measured_losses"]


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredLoss(_Figures):
    """What a schedule lost in one kind of run."""

    above_dense: float
    low: float | None  # of an interval of 95 %; None with one seed
    high: float | None
    seeds: int
    saving: float  # the share of the whole model's FLOPs
    no_worse: Literal["holds", "does not", "not decided"]  # the claim that it is no worse than the whole model


class MeasuredRun(_Figures):
    """A model and a length of run, with what was measured of it."""

    title: str  # the model's, in words
    parameters: int
    steps: int
    tokens_per_parameter: float
    tokens_per_step: int
    dense_short: float | None  # what the whole model loses if it is trained for as few FLOPs
    presets: Mapping[str, MeasuredLoss]


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
    default_won: int  # in how many of the runs
    default_of: int
    laws: tuple[FittedLaw, ...]
    runs: tuple[MeasuredRun, ...]

    def nearest(self, preset: str, steps: int, tokens_per_parameter: float) -> MeasuredRun | None:
        """The run with a preset whose length is most like this one's, by ratios; None if none was made with it.

        Of several that are alike it is the one with most seeds, and of those the largest model's.
        """

        def distance(run: MeasuredRun) -> tuple[float, int, int]:
            ratios = (run.steps / steps, run.tokens_per_parameter / tokens_per_parameter)
            apart = round(math.hypot(*map(math.log2, ratios)), 1)
            return apart, -run.presets[preset].seeds, -run.parameters

        return min((run for run in self.runs if preset in run.presets), key=distance, default=None)

    def beyond(self, steps: int, tokens_per_parameter: float, parameters: int) -> Iterator[str]:
        """In what a run lies outside of all that were measured: what it has, and what was measured."""
        for number, what, name in (
            (steps, "steps", "steps"),
            (tokens_per_parameter, "tokens a parameter", "tokens_per_parameter"),
            (parameters, "parameters", "parameters"),
        ):
            known = [getattr(run, name) for run in self.runs]
            if not min(known) <= number <= max(known):
                told, least, most = (
                    f"{float(f'{each:.2g}'):,}".removesuffix(".0") for each in (number, min(known), max(known))
                )
                yield f"{told} {what} (measured: {least} to {most})"

    def why_default(self, steps: int, tokens_per_parameter: float, parameters: int) -> str:
        """Why a run of this length that names no schedule has the default, and in what it is unlike all others."""
        won = f"{self.default} lost least in {self.default_won} of {self.default_of} kinds of runs that were measured"
        unlike = ", ".join(self.beyond(steps, tokens_per_parameter, parameters))
        return f"{won}; this run is like none of them: {unlike}" if unlike else won

    def law(self, preset: str) -> FittedLaw | None:
        """The law of a preset, if one was fitted."""
        return next((law for law in self.laws if law.preset == preset), None)


@cache
def measured_losses() -> MeasuredLosses:
    """What was measured so far."""
    text = resources.files("estfx.schedules").joinpath("measured_losses.json").read_text(encoding="utf-8")
    return MeasuredLosses.model_validate_json(text)
