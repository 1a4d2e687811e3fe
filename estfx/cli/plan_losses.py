"""What was measured of the losses of schedules like a plan's, and in what the plan is like none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Self

from pydantic import BaseModel, ConfigDict

from estfx.costs import Plan
from estfx.schedules import FittedLaw, MeasuredLoss, MeasuredRun, measured_losses

__all__ = ["KnownLosses"]


class KnownLoss(BaseModel):
    """Of one preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    run: MeasuredRun  # the nearest that was made with it
    law: FittedLaw | None
    predicted: (
        tuple[float, float, float] | None
    )  # by the law, with an interval of 95 %; of shorter runs it says nothing

    @property
    def loss(self) -> MeasuredLoss:
        return self.run.presets[self.preset]


class KnownLosses(BaseModel):
    """Of the presets in question, for a run of this length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    tokens_per_parameter: float
    presets: list[KnownLoss]
    beyond: list[str]  # in what the run lies outside of all that were measured
    default_won: int | None  # in how many kinds of runs the first preset lost least, if it is the default
    default_of: int

    @classmethod
    def of(cls, plan: Plan, presets: Sequence[str]) -> Self:
        """For a plan, of these presets; those that never were measured are left out."""
        known = measured_losses()
        steps, tokens, parameters = plan.length
        found = []
        for preset in presets:
            run, law = known.nearest(preset, steps, tokens), known.law(preset)
            if run is not None:
                predicted = None if law is None or steps < law.first else law.at(steps)
                found.append(KnownLoss(preset=preset, run=run, law=law, predicted=predicted))
        default = found and found[0].preset == known.default
        return cls(
            steps=steps,
            tokens_per_parameter=tokens,
            presets=found,
            beyond=list(known.beyond(steps, tokens, parameters)),
            default_won=known.default_won if default else None,
            default_of=known.default_of,
        )

    def lines(self) -> Iterator[str]:
        """For reading; nothing if nothing was measured of them."""
        for run, alike in groupby(self.presets, key=lambda one: one.run):
            yield (
                f"in nats a byte above the whole model's, in the nearest run that was measured ({run.title}): "
                f"{run.steps:,} steps of {run.tokens_per_step:,} tokens, {run.tokens_per_parameter:,.0f} a parameter"
            )
            for one in alike:
                seeds = f"{one.loss.seeds} seed{'s' * (one.loss.seeds > 1)}"
                value = _interval(one.loss.above_dense, one.loss.low, one.loss.high)
                saved = f"{one.loss.saving:.0%} of the FLOPs saved"
                word = one.loss.no_worse
                yield f"  {one.preset} {value}, {seeds}, {saved}; that it is no worse than the whole model: {word}"
            if run.dense_short is not None:
                yield f"  the whole model, trained for as few FLOPs {run.dense_short:.3f}"
        for one in self.presets:
            if one.law is not None and one.predicted is not None:
                law = one.law
                outside = "" if self.steps <= law.last else ", which is longer than all of them"
                yield (
                    f"by a law fitted to {law.points} kinds of runs of {law.family}, of {law.first:,} to {law.last:,} "
                    "steps: "
                    f"{one.preset} {_interval(*one.predicted)} after {self.steps:,}{outside}"
                )
        if self.default_won is not None:
            name = self.presets[0].preset
            yield f"{name} lost least of the presets in {self.default_won} of {self.default_of} kinds of runs"
        if self.presets and self.beyond:
            yield f"this run is like none of them: {', '.join(self.beyond)}; so this is no forecast (docs/quality.md)"


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
