"""What was measured of the losses of schedules like a plan's, and in what the plan is unlike them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Self

from pydantic import BaseModel, ConfigDict

from estfx.schedules import FittedLaw, KindOfRun, MeasuredLoss, MeasuredRun, measured_losses

__all__ = ["KnownLosses"]

_ANSWERS = {"holds": "yes", "does not": "no", "not decided": "not decided"}  # to what a claim asks


class KnownLoss(BaseModel):
    """Of one preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    run: MeasuredRun  # the nearest that was made with it
    unlike: list[str]  # in what the planned run is unlike that one
    law: FittedLaw | None  # of the same family
    predicted: (
        tuple[float, float, float] | None
    )  # by the law, with an interval of 95 %; of shorter runs it says nothing

    @property
    def loss(self) -> MeasuredLoss:
        return self.run.presets[self.preset]


class KnownLosses(BaseModel):
    """Of the presets in question, for a kind of run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: KindOfRun
    presets: list[KnownLoss]
    why_default: str | None  # if the first preset is the default

    @classmethod
    def of(cls, kind: KindOfRun, presets: Sequence[str]) -> Self:
        """Of these presets, from one run if one was made with all; those that never were measured are left out."""
        known = measured_losses()
        measured = [name for name in presets if known.nearest([name], kind)]
        shared = known.nearest(measured, kind) if measured else None
        found = []
        for preset in measured:
            run, law = shared or known.nearest([preset], kind), known.law(preset)
            assert run is not None
            if law is not None and law.family != kind.family:
                law = None
            predicted = None if law is None or kind.steps < law.first else law.at(kind.steps)
            found.append(KnownLoss(preset=preset, run=run, unlike=list(run.unlike(kind)), law=law, predicted=predicted))
        default = bool(found) and found[0].preset == known.default
        return cls(kind=kind, presets=found, why_default=known.why if default else None)

    def lines(self) -> Iterator[str]:
        """For reading; nothing if nothing was measured of them."""
        for run, each in groupby(self.presets, key=lambda one: one.run):
            yield (
                f"in nats a byte above the whole model's, in the nearest run that was measured ({run.title}): "
                f"{run.steps:,} steps of {run.tokens_per_step:,} tokens, {run.tokens_per_parameter:,.0f} a parameter"
            )
            alike = list(each)
            for one in alike:
                seeds = f"{one.loss.seeds} seed{'s' * (one.loss.seeds > 1)}"
                value = _interval(one.loss.above_dense, one.loss.low, one.loss.high)
                saved = f"{one.loss.saving:.0%} of the FLOPs saved"
                answer = _ANSWERS[one.loss.no_worse]
                yield f"  {one.preset} {value}, {seeds}, {saved}; as good as the whole model: {answer}"
            if run.dense_short is not None:
                yield f"  the whole model, trained for as few FLOPs {run.dense_short:.3f}"
            if unlike := alike[0].unlike:
                yield f"  this run is unlike that one: {', '.join(unlike)}; so it is no forecast (docs/quality.md)"
        for one in self.presets:
            if one.law is not None and one.predicted is not None:
                law = one.law
                outside = "" if self.kind.steps <= law.last else ", which is longer than all of them"
                yield (
                    f"by a law fitted to {law.points} kinds of runs of {law.family}, of {law.first:,} to {law.last:,} "
                    f"steps: {one.preset} {_interval(*one.predicted)} after {self.kind.steps:,}{outside}"
                )
        if self.why_default is not None:
            yield self.why_default


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
