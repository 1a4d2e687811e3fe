"""Schedules: which part of the model is trained at which step."""

import operator
from bisect import bisect_right
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from estfx.errors import EstfxError, ScheduleError
from estfx.settings import Settings

__all__ = ["Schedule", "Stage", "checked_step", "kept_count"]

Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]

# EST (arXiv 2406.06962): the first two stages end at 20k and 70k of 150k steps
_EST_STAGE_2, _EST_STAGE_3, _EST_STEPS = 20, 70, 150


class Stage(Settings):
    """What is kept from step `start` on, until the next stage starts."""

    error: ClassVar[type[EstfxError]] = ScheduleError

    start: int = Field(ge=0, strict=True)  # first optimizer step of the stage
    heads: Fraction = 1.0  # of the attention heads of each layer that runs (and channels of recurrent mixers)
    neurons: Fraction = 1.0  # of the MLP neurons of each layer that runs
    layers: Fraction = 1.0  # of the layers; the others are skipped

    @property
    def whole(self) -> bool:
        """Whether the stage trains the whole model."""
        return self.heads == self.neurons == self.layers == 1.0


class Schedule(Settings):
    """The stages of a training run, from the first step to the last.

    `policy` says which units a draw keeps: `random` ones (EST), or a `window`, one contiguous run of them.

    `skipped_layers` says what a kept layer adds to the residual stream while others are skipped: with `identity` its
    update as it is (the paper names no factor), with `inverse_keep` its update divided by the stage's layers
    fraction, so that the expected sum of all updates stays that of the whole model.
    """

    error: ClassVar[type[EstfxError]] = ScheduleError

    stages: Annotated[Sequence[Stage], AfterValidator(tuple)]  # in order of their starts; the first starts at step 0
    total_steps: Count | None = None  # optimizer steps of the run; the last stage ends there
    policy: Literal["random", "window"] = "random"  # which units a draw keeps
    neurons_multiple_of: Count = 1  # kept neurons are rounded to it, for hardware that likes multiples
    skipped_layers: Literal["identity", "inverse_keep"] = "identity"  # what a kept layer adds while others are skipped

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        if not self.stages:
            raise ValueError("a schedule needs at least one stage, and its first must start at step 0.")
        if self.stages[0].start != 0:
            raise ValueError(f"stage 1 starts at step {self.stages[0].start}; the first stage must start at step 0.")
        for number, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=1):
            if after.start <= before.start:
                raise ValueError(
                    f"stage {number + 1} starts at step {after.start}, but stage {number} starts at {before.start}; "
                    "starts must rise."
                )
        last = self.stages[-1].start
        if self.total_steps is not None and last >= self.total_steps:
            raise ValueError(
                f"stage {len(self.stages)} starts at step {last}, but the run ends after {self.total_steps} steps; "
                "raise total_steps or leave the stage out."
            )
        return self

    @classmethod
    def est(cls, total_steps: int, keep: float = 0.5) -> Self:
        """The paper's three stages: all sampled, then all layers, then the whole model (arXiv 2406.06962).

        The boundaries lie at 20/150 and 70/150 of the run. At `keep=0.5` that saves 26.67 % of the layers' FLOPs.
        """
        total = _checked_total(total_steps)
        second, third = round(total * _EST_STAGE_2 / _EST_STEPS), round(total * _EST_STAGE_3 / _EST_STEPS)
        if not 0 < second < third < total:
            raise ScheduleError(
                f"total_steps={total} is too short for three stages: they would start at 0, {second} and {third}. "
                "Use at least 4 steps, or write the stages yourself: Schedule(stages=[...])."
            )
        return cls(
            stages=(
                Stage(start=0, heads=keep, neurons=keep, layers=keep),
                Stage(start=second, heads=keep, neurons=keep),
                Stage(start=third),
            ),
            total_steps=total,
        )

    @classmethod
    def constant(cls, keep: float, total_steps: int | None = None) -> Self:
        """One stage with one keep fraction for heads, neurons and layers: the control at equal FLOPs."""
        total = None if total_steps is None else _checked_total(total_steps)
        return cls(stages=(Stage(start=0, heads=keep, neurons=keep, layers=keep),), total_steps=total)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Returns the index (from 0) of the stage in force at `step`, and the stage.

        The last stage has no end: it is in force at and after `total_steps` too.
        Raises ScheduleError for a step that is negative or no whole number.
        """
        index = bisect_right(self.stages, checked_step(step), key=lambda stage: stage.start) - 1
        return index, self.stages[index]


def checked_step(step: object) -> int:
    """Returns `step` as an int; numpy's and torch's whole numbers will do. Raises ScheduleError otherwise."""
    number = _whole_number(step)
    if number is None or number < 0:
        raise ScheduleError(f"a step counts optimizer steps from 0; it must be a whole number, got {step!r}.")
    return number


def kept_count(size: int, fraction: float, multiple_of: int = 1) -> int:
    """How many of `size` units are kept: the multiple of `multiple_of` nearest to `fraction * size`.

    Halves are rounded up. It is at least one multiple, at most `size`, and all of `size` when the fraction is 1.
    The fraction is read as the decimal that it prints as: 0.29 of 50 is 14.5, hence 15.
    """
    if size < 1 or multiple_of < 1 or not 0 < fraction <= 1:
        raise ScheduleError(f"cannot keep a fraction of {fraction} of {size} units in multiples of {multiple_of}.")
    if fraction == 1:
        return size
    exact = Decimal(repr(float(fraction))) * size / multiple_of
    return min(size, multiple_of * max(1, int(exact.to_integral_value(ROUND_HALF_UP))))


def _checked_total(total_steps: object) -> int:
    number = _whole_number(total_steps)
    if number is None or number < 1:
        raise ScheduleError(f"total_steps must be a whole number of at least 1, got {total_steps!r}.")
    return number


def _whole_number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the TypeError is what tells us
    except (TypeError, RuntimeError):  # torch raises RuntimeError for tensors of more than one element
        return None
