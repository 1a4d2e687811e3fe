"""A stage of a schedule: from which step on, and how much of everything is kept."""

from __future__ import annotations

import operator
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, ClassVar

from pydantic import Field

from estfx.errors import EstfxError, ScheduleError
from estfx.settings import Settings

__all__ = ["Count", "Fraction", "Share", "Stage", "checked_step", "checked_total", "kept_count", "whole_number"]

Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]


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


def checked_step(step: object) -> int:
    """Returns `step` as an int; numpy's and torch's whole numbers will do. Raises ScheduleError otherwise."""
    number = whole_number(step)
    if number is None or number < 0:
        raise ScheduleError(f"a step counts optimizer steps from 0; it must be a whole number, got {step!r}.")
    return number


def checked_total(total_steps: object) -> int:
    """Returns the number of a run's steps as an int. Raises ScheduleError unless it is a whole number from 1 on."""
    number = whole_number(total_steps)
    if number is None or number < 1:
        raise ScheduleError(f"total_steps must be a whole number of at least 1, got {total_steps!r}.")
    return number


def whole_number(value: object) -> int | None:
    """Returns a whole number of any library as an int; None for all else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the TypeError is what tells us
    except (TypeError, RuntimeError):  # torch raises RuntimeError for tensors of more than one element
        return None
