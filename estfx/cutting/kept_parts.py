"""What is to stay of a model: which layers, and which units of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from estfx.errors import EstfxError
from estfx.programs import Variant
from estfx.schedules import Subnetwork
from estfx.tracing import Decoder

__all__ = ["KeptParts", "Units", "kept_parts"]

Units = Mapping[str, Mapping[str, Any]]  # layer → role → kept indices, ascending or not


@dataclass(frozen=True)
class KeptParts:
    """The layers that stay, in the order of their calls, and the units of each by role, ascending."""

    layers: tuple[str, ...]
    dropped: tuple[str, ...]
    units: Mapping[str, Mapping[str, np.ndarray]]  # of the layers that stay; a role that is whole is left out
    scales: bool  # sums over kept units, by total / kept


def kept_parts(
    decoder: Decoder,
    variants: Mapping[str, Variant],
    what: Subnetwork | Units,
    layers: Collection[str] | None,
) -> KeptParts:
    """Reads what the user asked for, and refuses what this model has not got, before anything is done."""
    units: Units
    if isinstance(what, Subnetwork):
        if layers is not None:
            raise EstfxError("a Subnetwork says itself which layers run: leave out `layers`, or give its units alone.")
        running = {name for name, runs in what.layers.items() if runs}
        _known("layer", what.layers, decoder.order, of="the subnetwork")
        missing = set(decoder.infos) - set(what.layers)
        if missing:
            raise EstfxError(f"the subnetwork says nothing of layer `{min(missing)}`: it was drawn for another model.")
        units, scales = what.units, what.scales
    elif isinstance(what, Mapping):
        running = set(decoder.order if layers is None else layers)
        _known("layer", running, decoder.order, of="`layers`")
        _known("layer", what, decoder.order, of="the units")
        units, scales = what, False
    else:
        raise EstfxError(
            "estfx.cut takes a Subnetwork, such as model.subnetwork, or units: a dict of layer name → role → indices, "
            f'such as {{"{decoder.order[0]}": {{"heads": [0, 2]}}}}. This is a {type(what).__name__}.'
        )
    kept = tuple(name for name in decoder.order if name in running or name in decoder.left)
    if not kept:
        raise EstfxError("no layer is to stay: keep one at least.")
    dropped = tuple(name for name in decoder.order if name not in kept)
    for name in dropped:
        residuals = variants[decoder.infos[name].program].residuals
        if not residuals.droppable:
            raise EstfxError(f"layer `{name}` cannot be left out: {residuals.reason}.")
    found = {}
    for name in kept:
        if given := units.get(name):
            if name in decoder.left:
                raise EstfxError(f"layer `{name}` has no units that could be chosen: {decoder.left[name]}.")
            found[name] = _units_of(name, given, variants[decoder.infos[name].program])
    return KeptParts(kept, dropped, found, scales)


def _known(kind: str, asked: Collection[str], exist: Sequence[str], of: str) -> None:
    for name in asked:
        if name not in exist:
            some = ", ".join(f"`{each}`" for each in exist[:6]) + (", …" if len(exist) > 6 else "")
            raise EstfxError(f"{of} names {kind} `{name}`, which this model has not got. It has {some}.")


def _units_of(layer: str, given: Mapping[str, Any], variant: Variant) -> dict[str, np.ndarray]:
    sizes = {role.name: role.axis.size for role in variant.roles.found}
    found = {}
    for role, indices in given.items():
        if role not in sizes:
            there = ", ".join(f"{name} ({size})" for name, size in sizes.items()) or "nothing that could be narrowed"
            reasons = "".join(f" {note}." for note in variant.roles.notes if role.split("_")[0] in note)
            raise EstfxError(f"layer `{layer}` has no {role}; it has {there}.{reasons}")
        array = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise EstfxError(
                f"the {role} of layer `{layer}` are a list of their indices, one at least, from 0 to {sizes[role] - 1};"
                f" this is {str(indices)[:80]}."
            )
        array = np.sort(array.astype(np.int64))
        if array[0] < 0 or array[-1] >= sizes[role]:
            outside = array[-1] if array[-1] >= sizes[role] else array[0]
            raise EstfxError(
                f"layer `{layer}` has {sizes[role]} {role}, from 0 to {sizes[role] - 1}; there is no {outside}."
            )
        if len(np.unique(array)) < len(array):
            raise EstfxError(f"the {role} of layer `{layer}` name a unit twice: {array.tolist()[:20]}.")
        if len(array) < sizes[role]:
            found[role] = array
    return found
