"""The schedule that saves as many FLOPs as one wants."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import TypeVar

from estfx.errors import ScheduleError
from estfx.plan import Plan
from estfx.schedule import Schedule

__all__ = ["schedule_saving"]

S = TypeVar("S", bound=Schedule)


def schedule_saving(plan: Plan, schedule: S, target: float) -> S:
    """The schedule with its boundaries moved so that it saves `target` of the whole model's training FLOPs.

    All boundaries keep their ratios to each other. `plan` is the schedule's own, on the model in question; what is
    saved then is at least `target`, and more by one step of each stage at most.

    Raises ScheduleError if the stages cannot save that much, however late the last one begins.
    """
    total = plan.whole.steps
    if len(schedule.stages) < 2 or plan.stages[-1].flops_model != plan.whole.flops_model:
        raise ScheduleError(
            "boundaries are moved only where the last of several stages is the whole model; this schedule's is not."
        )
    saved = [1 - stage.flops_model / plan.whole.flops_model for stage in plan.stages]
    share = sum(own * stage.steps for own, stage in zip(saved, plan.stages, strict=True)) / total
    last = schedule.stages[-1].start
    largest = share * (total - 1) / last
    if not 0 < target <= largest:
        raise ScheduleError(
            f"these stages can save up to {largest:.1%} of the model's FLOPs, if the last one is a single step; "
            f"{target:.1%} were asked for. Keep less (--keep), or ask for less."
        )
    starts = [min(ceil(stage.start * target / share), total - 1) for stage in schedule.stages]
    if any(one >= other for one, other in pairwise(starts)):
        raise ScheduleError(f"{total} steps are too few for stages that start at {', '.join(map(str, starts))}.")
    stages = [stage.model_copy(update={"start": start}) for stage, start in zip(schedule.stages, starts, strict=True)]
    return schedule.model_copy(update={"stages": tuple(stages)})
