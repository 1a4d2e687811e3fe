"""The stages of the presets, as lists: what `Schedule.est` and its like are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from estfx.errors import ScheduleError
from estfx.schedules.stage import Stage, whole_number
from estfx.settings import nearest

__all__ = ["SHARES", "est_stages", "growing_stages", "stages_over"]

SHARES = 1_000_000  # steps that stand for a run whose length is not known yet

_CURVES: dict[str, Callable[[float], float]] = {  # from 0 at 0 to 1 at 1
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "cubic": lambda x: 1 - (1 - x) ** 3,
}

# EST (arXiv 2406.06962): the first two stages end at 20k and 70k of 150k steps
_EST_STAGE_2, _EST_STAGE_3, _EST_STEPS = 20, 70, 150


def est_stages(total: int, keep: float) -> tuple[Stage, ...]:
    """The paper's three, with its boundaries; see `Schedule.est`."""
    second, third = round(total * _EST_STAGE_2 / _EST_STEPS), round(total * _EST_STAGE_3 / _EST_STEPS)
    if not 0 < second < third < total:
        raise ScheduleError(
            f"total_steps={total} is too short for three stages: they would start at 0, {second} and {third}. "
            "Use at least 4 steps, or write the stages yourself: Schedule(stages=[...])."
        )
    return (
        Stage(start=0, heads=keep, neurons=keep, layers=keep),
        Stage(start=second, heads=keep, neurons=keep),
        Stage(start=third),
    )


def stages_over(stages: Sequence[Stage], shares: int, total: int) -> tuple[Stage, ...]:
    """Stages whose starts are shares, in a run of `total` steps."""
    starts = [round(stage.start * total / shares) for stage in stages]
    if any(after <= before for before, after in pairwise([*starts, total])):
        raise ScheduleError(
            f"{total} steps are too few: the {len(stages)} stages would start at {', '.join(map(str, starts))}."
        )
    return tuple(stage.model_copy(update={"start": start}) for stage, start in zip(stages, starts, strict=True))


def growing_stages(
    total: int,
    least: Mapping[str, float],
    *,
    curve: str,
    num_stages: int,
    whole_until: float,
    whole_from: float,
) -> tuple[Stage, ...]:
    """Stages whose fractions rise from those of `least` (by a stage's field) to the whole; see `Schedule.growing`."""
    if curve not in _CURVES:
        raise ScheduleError(f"unknown curve {curve!r}; {nearest(str(curve), _CURVES)}")
    if not 0 <= whole_until < whole_from <= 1:
        raise ScheduleError(
            f"whole_until={whole_until} and whole_from={whole_from} are shares of the run: they must rise, and lie "
            "between 0 and 1."
        )
    if whole_number(num_stages) is None or num_stages < 1:
        raise ScheduleError(f"num_stages must be a whole number of at least 1, got {num_stages!r}.")
    begins, ends = round(total * whole_until), round(total * whole_from)
    stages = [Stage(start=0)] if begins > 0 else []
    for number in range(num_stages):
        grown = _CURVES[curve](number / num_stages)
        fractions = {name: first + (1 - first) * grown for name, first in least.items()}
        stages.append(Stage(start=begins + (ends - begins) * number // num_stages, **fractions))
    if ends < total:
        stages.append(Stage(start=ends))
    if any(after.start <= before.start for before, after in pairwise(stages)):
        raise ScheduleError(
            f"{total} steps are too few: {num_stages} stages would start at "
            f"{', '.join(str(stage.start) for stage in stages)}. Use fewer stages, or more steps."
        )
    return tuple(stages)
