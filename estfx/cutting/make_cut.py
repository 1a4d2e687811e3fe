"""`estfx.cut`: a part of a model as an ordinary, smaller model of the same class."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from estfx.cutting.by_attributes import cut_by_attributes
from estfx.cutting.by_configuration import cut_by_configuration
from estfx.cutting.cut_summary import CutRecord
from estfx.cutting.cut_task import CutTask
from estfx.cutting.edits import Edit
from estfx.cutting.kept_parts import Units, kept_parts
from estfx.cutting.written_cut import written
from estfx.cutting_entry import ENTRY
from estfx.errors import UnsupportedModelError
from estfx.evolving import EvolvingModel
from estfx.programs import analysed
from estfx.schedules import Subnetwork
from estfx.tracing import LayerPatterns, trace
from estfx.transformation import restore
from estfx.waiting import tell, working

__all__ = ["cut", "cut_record"]

RECORD = "_estfx_cut"  # where a cut keeps its own


def cut_record(model: nn.Module) -> CutRecord:
    """How a model was cut out. Raises UnsupportedModelError if it was not, or was loaded from a folder."""
    found = vars(model).get(RECORD)
    if not isinstance(found, CutRecord):
        raise UnsupportedModelError(f"this `{type(model).__name__}` is nothing that estfx.cut has returned.")
    return found


@working("looking for the layers")
def cut(
    model: nn.Module,
    what: Subnetwork | Units,
    *,
    layers: Collection[str] | None = None,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
    dtype: torch.dtype | None = None,
    in_place: bool = False,
) -> Any:
    """A part of a decoder as a model of its own: the same class, smaller weights, and no code of estfx in it.

    The result is compared with the model itself, of which all but the kept part is masked: each kind of layer in
    float64, then the whole on the example inputs.

    Args:
        model: any decoder, transformed or not. It stays as it is.
        what: a `Subnetwork`, such as `model.subnetwork`, or units: layer name → role → the indices that stay. A role
            or a layer that is not named stays whole. What a subnetwork multiplies its sums by (total / kept) goes into
            the weights; units alone are not scaled.
        layers: with units, the names of the layers that stay; by default all.
        example_inputs: as `transform` takes them.
        named_layers: patterns for the layers of a model in which they are not found, as `transform(layers=…)` takes
            them.
        dtype: of the cut's weights; by default that of the model's.
        in_place: the model itself becomes the cut.

    Returns:
        The cut, in eval or training mode as the model is. What it was told besides its weights is in
        `estfx.cut_record(cut)`: a configuration, if there is one from which the class builds it; else edits of single
        numbers, which `estfx.save` and `save_pretrained` write down, and `estfx.load` and `from_pretrained` read.

    Raises:
        EstfxError: what is asked for does not exist in this model.
        UnsupportedModelError: a part of which the model's code cannot be told; the message says which.
        VerifyError: the cut does not compute what the masked whole does: a fault of estfx.
    """
    plain = restore(copy.deepcopy(model)) if isinstance(model, EvolvingModel) else model
    if named_layers is None and isinstance(model, EvolvingModel):
        named_layers = model._runtime.named
    decoder = trace(plain, example_inputs, layers=named_layers)
    scales = isinstance(what, Subnetwork) and what.scales
    variants = {name: analysed(traced, scales=scales) for name, traced in decoder.traced.items()}
    task = CutTask(decoder, variants, kept_parts(decoder, variants, what, layers))
    made, record = _made(task)
    made.train(model.training)
    if dtype is not None:
        made.to(dtype)
    vars(made)[RECORD] = record
    if not in_place:
        return made
    if isinstance(model, EvolvingModel):
        restore(model)
    model.__dict__.clear()
    model.__dict__.update(made.__dict__)
    return model


def _made(task: CutTask) -> tuple[nn.Module, CutRecord]:
    tell("running the masked whole")
    _ = task.want
    tell("looking for a configuration")
    with _quietly():
        found = cut_by_configuration(task)
    if found is not None:
        made, candidate, error = found
        return made, _record(task, made, "configuration", candidate.edits, candidate.tries, error)
    made, edits, tries, error = cut_by_attributes(task)
    record = _record(task, made, "attributes", edits, tries, error)
    config: Any = getattr(made, "config", None)
    if hasattr(type(config), "from_dict"):  # of transformers: it is written with the weights
        setattr(config, ENTRY, record.entry)
    return made, record


def _quietly() -> AbstractContextManager[None]:
    """Keeps transformers from talking of each configuration that is tried."""
    if "transformers" not in sys.modules:
        return nullcontext()
    from estfx.quiet import quiet_transformers

    return quiet_transformers()


def _record(task: CutTask, made: nn.Module, form: str, edits: Sequence[Edit], tries: int, error: float) -> CutRecord:
    kept = task.kept
    units = {name: {role: index.tolist() for role, index in roles.items()} for name, roles in kept.units.items()}
    entry = None
    if form == "attributes":
        smaller = {
            name: x.shape
            for name, x in made.state_dict().items()
            if name not in task.remaining or x.shape != task.remaining[name].shape
        }
        left = {path: positions for path, (_, positions) in task.places.items()}
        before = vars(task.model).get(RECORD)
        entry = written(task.model, left, smaller, edits, before.entry if before else None)
    sizes = {
        name: {role.name: role.axis.size for role in part.variant.roles.found} for name, part in task.parts.items()
    }
    parameters = tuple(sum(p.numel() for p in each.parameters()) for each in (task.model, made))
    return CutRecord(
        form=form,
        layers=kept.layers,
        dropped=task.dropped,
        units=units,
        sizes=sizes,
        parameters=(parameters[0], parameters[1]),
        edits=tuple(edits),
        tries=tries,
        error=error,
        entry=entry,
    )
