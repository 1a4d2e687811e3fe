"""Which rows and columns of a model's parameters take part in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn

from estfx.errors import EstfxError
from estfx.graphs import tags
from estfx.programs import Variant, resolve
from estfx.runtime.follower import StepState
from estfx.runtime.mounted_layers import MountedLayers

__all__ = ["PartAtWork", "narrowed_parameters", "owned_by"]


class PartAtWork:
    """The kept indices of all parameters that are not whole in a step, those of skipped layers too, which keep none.

    A draw may serve many steps, so what was found for the last one is kept.
    """

    def __init__(self, layers: MountedLayers) -> None:
        self._layers = layers
        self._known: tuple[object, dict[str, dict[int, torch.Tensor]]] | None = None

    def twin(self) -> Self:
        """One for a copy of the model."""
        return type(self)(self._layers)

    def of(self, state: StepState, model: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
        """By name and dimension, ascending, int64. The same object, as long as the same is at work."""
        at_work = {name: units for name, units in state.drawn.items() if state.running[name]}
        drawn = ((name, role, own.tobytes()) for name, roles in at_work.items() for role, own in roles.items())
        key = (*at_work, *drawn, *map(id, model.parameters()))  # the layers that run, the units of each, and of what
        if self._known is None or self._known[0] != key:
            found = narrowed_parameters(self._layers, self._layers.variants(model), state, model)
            paths = self._layers.paths
            running = {path for name, path in paths.items() if state.running[name]}
            skipped = [model.get_submodule(path) for path in set(paths.values()) - running]
            for name in owned_by(model, skipped).values():
                found[name] = {0: torch.zeros(0, dtype=torch.int64)}
            self._known = key, found
        return self._known[1]


def narrowed_parameters(
    layers: MountedLayers,
    variants: Mapping[str, Variant | None],
    state: StepState,
    model: nn.Module,
    by_layer: bool = False,
) -> dict[str, dict[int, torch.Tensor]]:
    """The kept indices by parameter and dimension, of the parameters that a step narrows.

    `variants`: of each layer, as it was in that step. A parameter that several layers share is given once, with what
    any of them keeps; with `by_layer` under its name in each layer that runs, with what that layer keeps.
    """
    uses: dict[str, list[dict[int, set[int]]]] = {}  # parameter → for each call that reads it, kept by dimension
    owners = owned_by(model, [model.get_submodule(path) for path in layers.paths.values()])
    for layer, drawn in state.units().items():
        module = model.get_submodule(layers.paths[layer])
        variant = variants[layer]
        if variant is None:
            raise EstfxError(
                f"layer `{layer}` was changed since transform, and was not called since. Call the model once; then "
                "the parameters that a step narrows are known."
            )
        program = layers.program(variant, state.counts[layer])
        indices = program.indices({role: index.numpy()[None] for role, index in drawn.items()})
        by_input = dict(zip((g.placeholder for g in program.gathers), indices, strict=True))
        kept: dict[str, dict[int, set[int]]] = {path: {} for path in program.weights}
        for path, dim, placeholder in tags.get(program.graph, tags.Indices).weights:
            kept[path][dim] = set(by_input[placeholder][0].tolist())
        for path, unit, placeholder in tags.get(program.graph, tags.Indices).of_one_unit:
            runs = unit in by_input[placeholder][0]
            kept[path][0] = set(range(len(resolve(module, path)) if runs else 0))
        for path, dims in kept.items():
            name = owners.get(id(resolve(module, path)))
            if name is not None:  # else it is a buffer, or has a use outside of the layers
                name = f"{layers.paths[layer]}.{path}" if by_layer else name
                uses.setdefault(name, []).append(dims)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name, each in uses.items():
        for dim in sorted(set.intersection(*map(set, each))):  # else one of the calls has all of that dimension
            union = set.union(*(dims[dim] for dims in each))
            if len(union) < sizes[name][dim]:
                found.setdefault(name, {})[dim] = torch.tensor(sorted(union), dtype=torch.int64)
    return found


def owned_by(model: nn.Module, layers: list[nn.Module]) -> dict[int, str]:
    """The names of the parameters, by identity, that belong to layers alone."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {id(layer) for layer in layers}
    todo = [model]
    while todo:
        module = todo.pop()
        if id(module) not in seen:
            seen.add(id(module))
            todo.extend(module.children())
            for parameter in module.parameters(recurse=False):
                names.pop(id(parameter), None)
    return names
