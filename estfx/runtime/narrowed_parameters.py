"""Which rows and columns of a model's parameters take part in a step, and how many numbers of them do not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from estfx.errors import EstfxError
from estfx.graphs import tags
from estfx.programs import Variant, resolve
from estfx.runtime.follower import StepState
from estfx.runtime.mounted_layers import MountedLayers

__all__ = ["narrowed_parameters", "numbers_left_out", "owned_by"]


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


def numbers_left_out(layers: MountedLayers, state: StepState, model: nn.Module) -> int:
    """How many numbers of a model's parameters take no part in a step.

    Of a parameter that several layers share, those that none of them reads.
    """
    left: dict[int, int] = {}
    for layer, kind in layers.kinds.items():
        module = model.get_submodule(layers.paths[layer])
        variant = layers.variant(layer, module) or kind.first
        for path, at_work in layers.program(variant, state.counts[layer]).numbers_at_work.items():
            parameter = resolve(module, path)
            if isinstance(parameter, nn.Parameter):
                out = parameter.numel() - at_work if state.running[layer] else parameter.numel()
                left[id(parameter)] = min(out, left.get(id(parameter), out))
    return sum(left.values())


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
