"""What a checkpoint must have in common with the model that goes on from it, whichever trainer wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estfx.errors import EstfxError
from estfx.runtime import Selection, differences
from estfx.schedules import Schedule, Stage

__all__ = ["load_selection", "mismatch_of_length", "refuse_another"]


def refuse_another(step: int, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raises EstfxError if a checkpoint was made with something else than the model is (`made_with`)."""
    if before is None:
        return
    # what a schedule could not say yet when the checkpoint was made, was as it is by default
    before = {**before, "schedule": {**_usual_schedule(), **before["schedule"]}}
    if lines := differences(before, now):
        raise EstfxError(
            f"the checkpoint of step {step} was made with something else: {'; '.join(lines)}. "
            "Transform the model as it was, or pass EvolvingCallback(accept_changes=True)."
        )


def _usual_schedule() -> dict[str, Any]:
    usual = Schedule(stages=[Stage(start=0)]).model_dump(mode="json")
    return {name: value for name, value in usual.items() if name not in ("stages", "total_steps")}


def load_selection(step: int, learnt: Mapping[str, Any], selection: Selection, accept_changes: bool) -> None:
    """Loads the scores of units. Raises EstfxError if the model needs some and the checkpoint has none, or others."""
    try:
        selection.load_state_dict(learnt)
    except EstfxError as error:
        if not accept_changes:
            raise EstfxError(
                f"the checkpoint of step {step} cannot be gone on from: {error} Or pass "
                "EvolvingCallback(accept_changes=True), to have the scores learnt anew."
            ) from None


def mismatch_of_length(schedule: Schedule, steps: int) -> str:
    """What becomes of a schedule in a run of so many steps, in words; empty if it was made for that."""
    total = schedule.total_steps
    if total is None or total == steps:
        return ""
    number = schedule.stage_at(steps - 1)[0] + 1
    what = (
        f"the run ends in stage {number} of {len(schedule.stages)}"
        if steps < total
        else f"its last stage goes on for {steps - total} steps more"
    )
    return f"runs for {steps} steps, the schedule is made for {total}: {what}"
