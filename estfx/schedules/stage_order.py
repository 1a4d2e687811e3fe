"""What the stages of a schedule must be to each other; each fault is a ValueError, which the schedule tells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from estfx.schedules.stage import Stage

__all__ = ["check_copies", "check_order"]


def check_order(stages: Sequence[Stage], total_steps: int | None) -> None:
    """The first starts at step 0, the others later and later, the last within the run."""
    if not stages:
        raise ValueError("a schedule needs at least one stage, and its first must start at step 0.")
    if stages[0].start != 0:
        raise ValueError(f"stage 1 starts at step {stages[0].start}; the first stage must start at step 0.")
    for number, (before, after) in enumerate(pairwise(stages), start=1):
        if after.start <= before.start:
            raise ValueError(
                f"stage {number + 1} starts at step {after.start}, but stage {number} starts at {before.start}; "
                "starts must rise."
            )
    last = stages[-1].start
    if total_steps is not None and last >= total_steps:
        raise ValueError(
            f"stage {len(stages)} starts at step {last}, but the run ends after {total_steps} steps; "
            "raise total_steps or leave the stage out."
        )


def check_copies(stages: Sequence[Stage], *, shared: bool) -> None:
    """Layers that join as copies: depth grows, and a copy keeps the units of its source."""
    for number, (before, after) in enumerate(pairwise(stages), start=2):
        if after.layers < before.layers:
            raise ValueError(
                f"joining_layers=copies is for depth that grows; stage {number} runs {after.layers} of the layers, "
                f"the one before {before.layers}."
            )
        if after.layers > before.layers and min(after.heads, after.neurons) < 1 and not shared:
            raise ValueError(
                f"in stage {number} copies of layers join with a part of their units, which must be those that the "
                "layer they are copied from has trained: use draws=shared."
            )
