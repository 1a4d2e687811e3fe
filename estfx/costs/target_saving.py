"""The schedule that saves as many FLOPs as one wants."""

from __future__ import annotations

import logging
from itertools import pairwise
from math import ceil
from typing import Literal, TypeVar

from torch import nn

from estfx.costs.schedule_plan import Plan, plan
from estfx.errors import ScheduleError
from estfx.schedules import Schedule, preset_schedule
from estfx.tracing import LayerPatterns

__all__ = ["little_left", "schedule_for_saving", "schedule_saving"]

S = TypeVar("S", bound=Schedule)
log = logging.getLogger(__name__)

LEAST_WHOLE = 0.2  # of a run; of less for the whole model nothing was measured (docs/quality.md)


def schedule_for_saving(
    model: nn.Module,
    saving: float,
    total_steps: int,
    *,
    preset: Literal["est", "growing", "stacking", "compound"] | None = None,
    keep: float | None = None,
    batch_size: int = 1,
    seq_len: int = 128,
    example_inputs: object = None,
    layers: LayerPatterns | None = None,
) -> Schedule:
    """A schedule that saves `saving` of the whole model's training FLOPs: its boundaries are found.

    With the preset `compound` it is a shallow and narrow model that grows, with `stacking` one that is shallow
    alone, with `growing` one that is narrow alone, with `est` the paper's stages, drawn anew at every step. Without
    one it is `compound`, which lost least in most of what was measured (docs/quality.md), but `growing` for a model
    that was loaded, since the other two overwrite layers. `keep` is the fraction of heads and neurons with
    `growing` (by default 0.25), of layers with `stacking`, of all of them with `est` and `compound` (0.5).

    `saving` is a share, such as 0.25; that of the layers alone is then higher, since embedding and LM head stay
    whole. `seq_len`, in tokens, is that of training: attention costs more, the longer a sequence is.
    `example_inputs` and `layers` are as for `transform`. Weights may be on the meta device.

    Raises ScheduleError if the stages cannot save as much, however late the last one begins.
    """
    schedule = preset_schedule(preset, total_steps, keep, loaded=bool(getattr(model, "name_or_path", "")))
    found = plan(model, schedule, batch_size=batch_size, seq_len=seq_len, example_inputs=example_inputs, layers=layers)
    found_schedule = schedule_saving(found, schedule, saving)
    if (warning := little_left(found_schedule)) is not None:
        log.warning("%s", warning)
    return found_schedule


def little_left(schedule: Schedule) -> str | None:
    """A warning, if a schedule leaves the whole model less than a fifth of the run; else None."""
    total, last = schedule.total_steps, schedule.stages[-1]
    if total is None or total - last.start >= LEAST_WHOLE * total:
        return None
    return (
        f"stage {len(schedule.stages)} is left {total - last.start:,} of {total:,} steps "
        f"({(total - last.start) / total:.1%}). With less than {LEAST_WHOLE:.0%} for the last stage no loss was "
        "measured. Save less, or keep less in the stages before."
    )


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
