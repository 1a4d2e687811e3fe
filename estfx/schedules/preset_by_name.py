"""Presets by their names, and the one that a run has which names none."""

from __future__ import annotations

from typing import Any

from estfx.errors import ScheduleError
from estfx.schedules.measured_losses import measured_losses
from estfx.schedules.schedule import Schedule
from estfx.settings import nearest

__all__ = ["PRESETS", "default_preset", "preset_of", "preset_schedule", "schedule_rules"]

PRESETS = ("est", "growing", "stacking", "compound")  # those whose stages grow to the whole
_STEPS = 1_000  # of a run in which any preset has room for its stages
_LEFT_OUT = {"stages", "total_steps", "in_shares", "idle_units"}  # of rules: of the length, or told in another way


def default_preset(*, loaded: bool = False) -> str:
    """The preset of a run that names none, in Python as on the command line.

    It is the one that lost least in most of the runs that were measured (`measured_losses`). For a model that was
    loaded it is `growing`: others overwrite layers with copies of others until they join.
    """
    return "growing" if loaded else measured_losses().default


def preset_of(schedule: Schedule) -> str | None:
    """The preset with the same stages and rules, wherever the stages start; None if there is none."""
    own = schedule_rules(schedule)
    return next((name for name in PRESETS if schedule_rules(preset_schedule(name, _STEPS)) == own), None)


def schedule_rules(schedule: Schedule) -> dict[str, Any]:
    """A schedule's settings as they are in force, but for the run's length and for where its stages start."""
    rules = schedule.model_dump(mode="json", exclude=_LEFT_OUT)
    stages = [stage.model_dump(exclude={"start"}) for stage in schedule.stages]
    return rules | {"stages": stages, "leaves_idle_alone": schedule.leaves_idle_alone}


def preset_schedule(
    preset: str | None, total_steps: int, keep: float | None = None, *, loaded: bool = False
) -> Schedule:
    """One of `PRESETS`, or without a name the default; `keep` is as `estfx.schedule_for_saving` has it."""
    name = preset or default_preset(loaded=loaded)
    if name not in PRESETS:
        raise ScheduleError(f"unknown preset {preset!r}; {nearest(str(preset), PRESETS)}")
    if keep is not None and not 0 < keep <= 1:
        raise ScheduleError(f"keep is a fraction above 0 and at most 1, such as 0.5; got {keep:g}.")
    kept = {"growing": ("heads", "neurons"), "stacking": ("layers",)}.get(name, ("keep",))
    made: Schedule = getattr(Schedule, name)(total_steps, **({} if keep is None else dict.fromkeys(kept, keep)))
    return made
