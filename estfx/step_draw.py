"""What a step trains: a pure function of the schedule, the seed, the step and what there is to draw in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estfx.draws import draw_layers, draw_units
from estfx.schedule import Schedule, Stage, kept_count
from estfx.tags import fraction_of

__all__ = ["DrawnLayer", "StepDraw", "draw_step", "units_kept"]


@dataclass(frozen=True)
class DrawnLayer:
    """A layer as draws know it: calls of one module share the module's units, and are skipped one by one."""

    path: str  # of its module
    droppable: bool
    sizes: Mapping[str, int]  # units by role


@dataclass(frozen=True)
class StepDraw:
    """What a step trains."""

    stage_index: int
    running: dict[str, bool]  # by layer
    units: dict[str, dict[str, NDArray[np.int64]]]  # layer → role → units, of skipped layers too


def draw_step(schedule: Schedule, seed: int, layers: Mapping[str, DrawnLayer], step: int) -> StepDraw:
    """Draws the layers, by name in the order of their calls, and the units of each."""
    stage_index, stage = schedule.stage_at(step)
    step -= step % schedule.resample_every  # the first of the steps that share a draw
    droppable = [name for name, layer in layers.items() if layer.droppable]
    running = dict.fromkeys(layers, True)
    if droppable:
        kept = schedule.layers_kept(stage, len(droppable))
        always = schedule.layers_always_run(len(droppable))
        runs = draw_layers(seed=seed, step=step, num_layers=len(droppable), kept=kept, always=always)
        running |= {name: bool(each) for name, each in zip(droppable, runs, strict=True)}
    drawn: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in layers}
    matrices: dict[tuple[str, int], NDArray[np.int64]] = {}
    paths = dict.fromkeys(layer.path for layer in layers.values())
    shared = schedule.draws == "shared"
    rows = {path: 0 if shared else row for row, path in enumerate(paths)}  # units are a module's own
    for name, layer in layers.items():
        for role, size in layer.sizes.items():
            key = (role, size)
            if key not in matrices:
                matrices[key] = draw_units(
                    schedule.policy,
                    seed=seed,
                    step=step,
                    role=role,
                    num_layers=1 if shared else len(rows),
                    size=size,
                    kept=units_kept(schedule, stage, role, size),
                )
            drawn[name][role] = matrices[key][rows[layer.path]]
    return StepDraw(stage_index, running, drawn)


def units_kept(schedule: Schedule, stage: Stage, role: str, size: int) -> int:
    """How many of `size` units of a role a stage keeps in each layer that runs."""
    fraction = fraction_of(role)
    multiple = schedule.neurons_multiple_of if fraction == "neurons" else 1
    return kept_count(size, getattr(stage, fraction), multiple)
