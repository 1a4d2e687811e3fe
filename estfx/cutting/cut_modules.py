"""A copy of a model that holds what is kept: smaller weights, fewer layers. Its code is not told yet."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from estfx.cutting.edits import Edit, held_numbers
from estfx.cutting.layer_parts import LayerPart, cut_tensor
from estfx.errors import UnsupportedModelError
from estfx.programs import resolve

__all__ = ["cut_layer", "cut_model", "cut_weights", "index_edits", "new_names", "places_left", "renamed"]


def cut_layer(layer: nn.Module, part: LayerPart) -> nn.Module:
    """A copy of a layer with the kept rows and columns of its weights."""
    memo: dict[int, Any] = {}
    for tensor, new in _cut_weights(layer, part):
        memo[id(tensor)] = new
    return copy.deepcopy(layer, memo)


def _cut_weights(layer: nn.Module, part: LayerPart) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for path, kept in part.weights.items():
        old = resolve(layer, path)
        found.append((old, _as(old, cut_tensor(old, kept, part.factors.get(path)))))
    for path, factors in part.factors.items():  # a weight that is scaled and whole
        if path not in part.weights:
            old = resolve(layer, path)
            found.append((old, _as(old, cut_tensor(old, {}, factors))))
    return found


def _as(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def cut_weights(model: nn.Module, parts: Mapping[str, LayerPart]) -> dict[int, torch.Tensor]:
    """By the identity of each weight that changes, what takes its place.

    Raises UnsupportedModelError for one that two layers share and of which they keep something else, or that has a use
    outside of the layers.
    """
    layers = {part.path for part in parts.values()}
    outside = {
        id(tensor): f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if not any(path == layer or path.startswith(f"{layer}.") for layer in layers)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    made: dict[int, tuple[str, torch.Tensor]] = {}
    for part in parts.values():
        for old, new in _cut_weights(model.get_submodule(part.path), part):
            known = made.get(id(old))
            if known is not None and not (known[1].shape == new.shape and torch.equal(known[1], new)):
                raise UnsupportedModelError(
                    f"layers `{known[0]}` and `{part.name}` share a weight, and of it one keeps what the other does "
                    "not. Give both the same units."
                )
            if id(old) in outside:
                raise UnsupportedModelError(
                    f"a weight of layer `{part.name}` of which units are left out is used outside of the layers too, "
                    f"as `{outside[id(old)]}`."
                )
            made.setdefault(id(old), (part.name, new))
    return {key: new for key, (_, new) in made.items()}


def cut_model(
    model: nn.Module, parts: Mapping[str, LayerPart], weights: Mapping[int, torch.Tensor], dropped: Collection[str]
) -> nn.Module:
    """A copy of the model with the weights of `cut_weights` and without the layers in `dropped`, paths of modules."""
    memo: dict[int, Any] = dict(weights)
    placed = _places(model, dropped)
    for path in dropped:
        memo[id(model.get_submodule(path))] = nn.Identity()
    made = copy.deepcopy(model, memo)
    for part in parts.values():
        for path in part.weights:  # a buffer that is not saved would be made for all units where the cut is loaded
            owner, _, last = f"{part.path}.{path}".rpartition(".")
            made.get_submodule(owner)._non_persistent_buffers_set.discard(last)
    for container, numbers in placed.items():
        holder: Any = made.get_submodule(container)
        for number in sorted(numbers, reverse=True):
            del holder[number]
    return made


def _places(model: nn.Module, paths: Collection[str]) -> dict[str, list[int]]:
    """The lists that hold these modules, and their positions in them."""
    found: dict[str, list[int]] = {}
    for path in paths:
        container, _, last = path.rpartition(".")
        if not isinstance(model.get_submodule(container), (nn.ModuleList, nn.Sequential)) or not last.isdecimal():
            raise UnsupportedModelError(
                f"layer `{path}` cannot be left out: it is in no nn.ModuleList, so that the code of "
                f"`{container or type(model).__name__}` calls it by name. Keep all layers."
            )
        found.setdefault(container, []).append(int(last))
    return found


def places_left(model: nn.Module, dropped: Collection[str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """For each list of layers of which some are dropped, how many there were, and the positions of those that stay."""
    found = {}
    for container, numbers in _places(model, dropped).items():
        whole = len(model.get_submodule(container))  # type: ignore[arg-type]
        found[container] = whole, tuple(i for i in range(whole) if i not in numbers)
    return found


def new_names(model: nn.Module, dropped: Collection[str]) -> list[tuple[str, str]]:
    """For each layer behind one that is dropped, the path that it had, and the one that it has in the cut."""
    renamed = []
    for container, (_, left) in places_left(model, dropped).items():
        renamed += [(f"{container}.{old}", f"{container}.{new}") for new, old in enumerate(left) if new != old]
    return renamed


def index_edits(model: nn.Module, dropped: Collection[str]) -> list[Edit]:
    """The positions that layers know of themselves, such as that in a KV cache, as they are when some are left out.

    A number is one if it rises by one from each layer of a list to the next.
    """
    edits = []
    for container, (_, left) in places_left(model, dropped).items():
        layers: list[nn.Module] = list(model.get_submodule(container))  # type: ignore[call-overload]
        if len(layers) < 2:
            continue
        held = [{path: value for path, value, _ in held_numbers(layer)} for layer in layers]
        rising = [
            path
            for path, first in held[0].items()
            if isinstance(first, int) and all(each.get(path) == first + i for i, each in enumerate(held))
        ]
        base = tuple(container.split(".")) if container else ()
        edits += [
            Edit((*base, str(new), *path), held[0][path] + new)
            for new, old in enumerate(left)
            if new != old
            for path in rising
        ]
    return edits


def renamed(path: str, names: Collection[tuple[str, str]]) -> str:
    """A path as it is once layers were left out."""
    for old, new in names:
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return path
