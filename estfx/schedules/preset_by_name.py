"""Presets by their names, and the one that a run has which names none."""

from __future__ import annotations

from estfx.errors import ScheduleError
from estfx.schedules.schedule import Schedule
from estfx.settings import nearest

__all__ = ["PRESETS", "default_preset", "preset_schedule"]

PRESETS = ("est", "growing", "stacking", "compound")  # those whose stages grow to the whole


def default_preset(*, loaded: bool = False) -> str:
    """The preset of a run that names none, in Python as on the command line.

    It is `compound`, which lost least in nearly all runs of the lengths that were measured (docs/quality.md). For a
    model that was loaded it is `growing`: the other overwrites layers with copies of others until they join.
    """
    return "growing" if loaded else "compound"


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
