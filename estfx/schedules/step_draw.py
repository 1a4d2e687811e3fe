"""What a step trains: a pure function of the schedule, the seed, the step, what there is to draw in each layer, and the
scores of units, if the policy ranks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estfx.graphs import fraction_of
from estfx.schedules.draws import draw_layers, draw_units, spread_layers
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage, kept_count

__all__ = [
    "DrawnLayer",
    "StepDraw",
    "UnitScores",
    "draw_step",
    "layers_of_stage",
    "units_kept",
    "widths",
    "widths_of_layers",
]

UnitScores = Mapping[tuple[str, str], NDArray[np.float64]]  # of a module's units, by its path and role


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


def draw_step(
    schedule: Schedule, seed: int, layers: Mapping[str, DrawnLayer], step: int, scores: UnitScores | None = None
) -> StepDraw:
    """Draws the layers, by name in the order of their calls, and the units of each.

    `scores` are those of the units of all modules; without them a policy that ranks draws at random.
    """
    stage_index, stage = schedule.stage_at(step)
    step = schedule.drawn_at(step)
    droppable = [name for name, layer in layers.items() if layer.droppable]
    running = dict.fromkeys(layers, True)
    if droppable:
        if schedule.copies_layers:
            runs = layers_of_stage(schedule, stage_index, [layers[name].sizes for name in droppable])
        else:
            kept = schedule.layers_kept(stage, len(droppable))
            always = schedule.layers_always_run(len(droppable))
            runs = draw_layers(seed=seed, step=step, num_layers=len(droppable), kept=kept, always=always)
        running |= {name: bool(each) for name, each in zip(droppable, runs, strict=True)}
    drawn: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in layers}
    sizes: dict[tuple[str, int], dict[str, None]] = {}  # role and size → the modules that have it
    for layer in layers.values():
        for role, size in layer.sizes.items():
            sizes.setdefault((role, size), {})[layer.path] = None
    paths = list(dict.fromkeys(layer.path for layer in layers.values()))
    for (role, size), having in sizes.items():
        units = _units(schedule, seed, step, stage, role, size, paths, list(having), scores)
        for name, layer in layers.items():
            if layer.sizes.get(role) == size:
                drawn[name][role] = units[layer.path]
    return StepDraw(stage_index, running, drawn)


def layers_of_stage(schedule: Schedule, stage_index: int, sizes: Sequence[Mapping[str, int]]) -> NDArray[np.bool_]:
    """Which of the layers that can be skipped run in a stage, if those that join are copies: booleans by layer.

    They are spread evenly over the layers that have the same units, by `sizes`, so that each has one like it to follow.
    """
    groups = [sorted(each.items()) for each in sizes]
    order = sorted(range(len(groups)), key=lambda layer: groups.index(groups[layer]))
    places = {layer: place for place, layer in enumerate(order)}
    counts = [schedule.layers_kept(stage, len(sizes)) for stage in schedule.stages[: stage_index + 1]]
    spread = spread_layers(len(sizes), counts, [places[each] for each in schedule.layers_always_run(len(sizes))])
    return spread[[places[layer] for layer in range(len(sizes))]]


def _units(
    schedule: Schedule,
    seed: int,
    step: int,
    stage: Stage,
    role: str,
    size: int,
    paths: Sequence[str],
    having: Sequence[str],
    scores: UnitScores | None,
) -> dict[str, NDArray[np.int64]]:
    """The units of a role and a size that each module keeps, of those in `having`.

    Every module of the model has a row of its own in a draw, whether it has such units or not.
    """
    kept = units_kept(schedule, stage, role, size)
    of_all = None if scores is None else np.stack([scores[path, role] for path in having])
    shared = schedule.draws == "shared"
    rows = {path: 0 if shared else row for row, path in enumerate(paths)}
    scores_RN = None
    if of_all is not None and shared:
        scores_RN = of_all.mean(axis=0, keepdims=True)
    elif of_all is not None:
        scores_RN = np.zeros((len(paths), size))
        scores_RN[[rows[path] for path in having]] = of_all
    each = [kept] * len(having)
    if of_all is not None and schedule.ranking == "global":
        each = widths(of_all, kept, _multiple(schedule, role))
    drawn = {
        width: draw_units(
            schedule.policy,
            seed=seed,
            step=step,
            role=role,
            num_layers=1 if shared else len(paths),
            size=size,
            kept=width,
            scores=scores_RN,
            exploration=0.0 if scores_RN is None else schedule.exploration,
            cycle=schedule.cycle_steps,
        )
        for width in set(each)
    }
    return {path: drawn[width][rows[path]] for path, width in zip(having, each, strict=True)}


def widths(scores_LN: NDArray[np.float64], kept: int, multiple_of: int = 1) -> list[int]:
    """How many units each of L layers keeps, if they are ranked together: `kept` on the average.

    There are three widths, so that compilations stay few: `kept`, about half of it, and as much more. A layer is wide
    if so many of its units are among the L · kept best of all that the wide one is nearer, and narrow likewise; as many
    are wide as narrow, those with the most and the fewest, so that all together cost what equal ones do.
    """
    layers, size = scores_LN.shape
    narrow, _, wide = _width_choices(size, kept, multiple_of)
    if narrow == kept:
        return [kept] * layers
    best = np.argsort(-scores_LN.ravel(), kind="stable")[: layers * kept]
    wanted = np.bincount(best // size, minlength=layers)
    pairs = min(np.count_nonzero(2 * wanted >= kept + wide), np.count_nonzero(2 * wanted <= kept + narrow))
    order = np.argsort(-wanted, kind="stable")
    each = np.full(layers, kept)
    each[order[:pairs]] = wide
    each[order[layers - pairs :]] = narrow
    return [int(width) for width in each]


def _width_choices(size: int, kept: int, multiple_of: int = 1) -> tuple[int, int, int]:
    """The narrow, the middle and the wide one of layers that keep `kept` of `size` units on their average."""
    narrow = multiple_of * max(1, round(kept / 2 / multiple_of))
    wide = min(size, 2 * kept - narrow)
    narrow = 2 * kept - wide
    return (narrow, kept, wide) if 0 < narrow < kept else (kept, kept, kept)


def units_kept(schedule: Schedule, stage: Stage, role: str, size: int) -> int:
    """How many of `size` units of a role a stage keeps in each layer that runs, or on their average."""
    return kept_count(size, getattr(stage, fraction_of(role)), _multiple(schedule, role))


def widths_of_layers(schedule: Schedule, stage: Stage, role: str, size: int) -> tuple[int, ...]:
    """How many units of a role the layers may keep in a stage, in ascending order: one number, or three."""
    kept = units_kept(schedule, stage, role, size)
    choices = _width_choices(size, kept, _multiple(schedule, role)) if schedule.ranking == "global" else (kept,)
    return tuple(sorted(set(choices)))


def _multiple(schedule: Schedule, role: str) -> int:
    """Of what number the kept units of a role are a multiple."""
    return schedule.neurons_multiple_of if fraction_of(role) == "neurons" else 1
