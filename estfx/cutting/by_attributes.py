"""A cut that no configuration can say: a smaller copy of the model, and the numbers that its code reads set anew."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from estfx.cutting.attribute_search import Found, search_numbers
from estfx.cutting.cut_modules import cut_layer, cut_model, index_edits
from estfx.cutting.cut_task import CutTask
from estfx.cutting.edits import Edit, apply_edits, for_fewer_layers, held_values
from estfx.cutting.layer_parts import LayerPart
from estfx.cutting.layer_trial import LayerTrial
from estfx.cutting.masked_whole import worst_difference
from estfx.cutting.written_cut import apply_to_model
from estfx.errors import UnsupportedModelError, VerifyError
from estfx.waiting import tell

__all__ = ["cut_by_attributes"]

TRIES_AROUND, FEW = 150, 30  # of the whole model: for the likeliest way to count its layers, and for the others


def cut_by_attributes(task: CutTask) -> tuple[nn.Module, tuple[Edit, ...], int, float]:
    """The cut, the edits of its numbers, how many were tried, and its error against the masked whole.

    Raises UnsupportedModelError if there are no such edits; the message says which part cannot be cut.
    """
    name = type(task.model).__name__
    if task.on_meta:
        raise UnsupportedModelError(
            f"no configuration of `{name}` gives this cut, and the numbers that its code reads can be looked for only "
            "where it runs: its weights are on the meta device."
        )
    known: dict[Any, tuple[Edit, ...]] = {}
    edits: list[Edit] = []
    tries = 0
    for part in task.modules:
        if part.key not in known:
            tell(f"looking for the numbers that {part.name} reads")
            known[part.key], tried = _layer_edits(task, part)
            tries += tried
        prefix = task.path_in_cut(part).split(".")
        edits += [edit.within(prefix) for edit in known[part.key]]
    made = cut_model(task.model, task.parts, task.weights, task.dropped)
    apply_edits(made, edits)
    tell("looking for the numbers that the model reads")
    around, tried = _edits_around(task, made)
    apply_to_model(made, around)
    error = task.error(made)
    if not error <= task.tolerance:
        raise VerifyError(
            f"the cut of this `{name}` does not compute what the masked whole does: relative error {error:.1e}. Please "
            "report the model."
        )
    return made, (*edits, *around), tries + tried, error


def _layer_edits(task: CutTask, part: LayerPart) -> tuple[tuple[Edit, ...], int]:
    """What the code of a layer has to be told, one role after the other."""
    edits: tuple[Edit, ...] = ()
    done: dict[str, Any] = {}
    tries = 0
    for role, units in part.units.items():
        done[role] = units
        step = task.alone(part, done)
        layer = cut_layer(part.call.module, step).double()
        found = _searched(layer, LayerTrial(task.model, step), step, edits)
        tries += found.tries
        if found.edits is None:
            raise UnsupportedModelError(_refusal(part, role, found))
        edits = (*edits, *found.edits)
    return tuple({edit.path: edit for edit in edits}.values()), tries


def _searched(layer: nn.Module, trial: LayerTrial, part: LayerPart, start: tuple[Edit, ...]) -> Found:
    return search_numbers(layer, lambda: trial.run(layer), trial.fits, part.sizes, start=start)


def _refusal(part: LayerPart, role: str, found: Found) -> str:
    others = [each.name for each in part.variant.roles.found if each.name != role]
    return (
        f"the {role} of layer `{part.name}` cannot be cut out: of {found.tries} ways to set the numbers that its code "
        f"reads, none computes what the masked whole does ({found.why}). Keep them all. "
        f"{'What else there is: ' + ', '.join(others) + ', and whole layers.' if others else 'Leave out whole layers.'}"
    )


# -- around the layers -------------------------------------------------------------------------------------------------


def _edits_around(task: CutTask, made: nn.Module) -> tuple[list[Edit], int]:
    """What the code around the layers has to be told: how many there are, and of what sizes."""
    tries = 0
    first: Found | None = None
    for way in _ways_to_count(task, made):
        found = _around(task, made, way, TRIES_AROUND if first is None else FEW)
        tries += found.tries
        if found.edits is not None:
            return [*way, *found.edits], tries
        first = first or found
    assert first is not None
    name = type(task.model).__name__
    reasons = []
    if any(part.units for part in task.modules):
        reasons.append(
            "What it makes for all units of a kind, such as a bias of each head by position, it makes for a number of "
            "them, not for those that stay: keep them all."
        )
    if task.dropped:
        reasons.append("What it does with a layer may depend on the layer's number: keep all layers.")
    raise UnsupportedModelError(
        f"the layers themselves could be cut, but the code of `{name}` around them does not go with "
        f"them ({first.why}). "
        f"{' '.join(reasons)}"
    )


def _around(task: CutTask, made: nn.Module, way: list[Edit], tries: int) -> Found:
    copied = copy.deepcopy(made)
    apply_to_model(copied, way)
    return search_numbers(
        copied,
        lambda: task.outputs(copied),
        lambda got: worst_difference(task.want, got) <= task.tolerance and task.error(copied) <= task.tolerance,
        task.sizes,
        leave_out=[copied.get_submodule(task.path_in_cut(part)) for part in task.modules],
        tries=tries,
    )


def _ways_to_count(task: CutTask, made: nn.Module) -> Iterator[list[Edit]]:
    """Sets of edits by which a model may know that it has fewer layers, the likeliest first; one if it has not."""
    if not task.dropped:
        yield []
        return
    config = getattr(made, "config", None)
    indices = index_edits(task.model, task.dropped)
    lists: list[Edit] = []
    counts: list[Edit] = []
    for whole, left in task.places.values():
        for path, value in held_values(config) if config is not None else ():
            shorter = for_fewer_layers(value, whole, left)
            if shorter is not None:
                lists.append(Edit(("config", *path), shorter))
            elif value == whole and isinstance(value, int) and not isinstance(value, bool):
                counts.append(Edit(("config", *path), len(left)))
    for edit in counts:
        yield [*indices, *lists, edit]
    yield [*indices, *lists, *counts]
    yield [*indices, *lists]
    yield [*lists, *counts]
    yield [*lists]
    yield [*indices]
    yield []
