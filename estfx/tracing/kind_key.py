"""Which layers are of one kind: those that run the same code on the same shapes share their graphs.

Before anything is exported, layers are told apart by what they are made of and by the attributes that they read while
they ran. Afterwards, those whose graphs turn out the same are put together.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from estfx.graphs import has_tensor, tags
from estfx.tracing.call_signature import constant_key, flatten
from estfx.tracing.effects import frozen, hooks_within, tensors_held
from estfx.tracing.exporting.layer_graph import TracedLayer
from estfx.tracing.layer_call import LayerCall

__all__ = ["canonical", "differing_attributes", "kind_key"]


def _attribute_key(value: object) -> Hashable:
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(_attribute_key(item) for item in value))
    return constant_key(value)


def _plain_attributes(module: nn.Module, names: set[str]) -> dict[str, Hashable]:
    known = {*module._parameters, *module._buffers, *module._modules}
    found: dict[str, Hashable] = {}
    for name in sorted(names - known):
        if name in module.__dict__ and not isinstance(module.__dict__[name], torch.Tensor):
            found[name] = _attribute_key(module.__dict__[name])
    return found


def differing_attributes(calls: list[LayerCall]) -> dict[str, set[str]]:
    """By submodule path, the attributes that some layer read and that are not the same in all of them."""
    differing: dict[str, set[str]] = {}
    for path in {path for call in calls for path in call.attributes}:
        names = {name for call in calls for name in call.attributes.get(path, ())}
        values: dict[str, set[Hashable]] = {}
        for call in calls:
            if path in call.attributes:
                for name, key in _plain_attributes(call.module.get_submodule(path), names).items():
                    values.setdefault(name, set()).add(key)
        differing[path] = {name for name, keys in values.items() if len(keys) > 1}
    return differing


def kind_key(call: LayerCall, differing: dict[str, set[str]]) -> Hashable:
    """Equal for two layers only if they run the same code on the same shapes."""
    tree = []
    for path, module in call.module.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors)
        read = differing.get(path, set()) & call.attributes.get(path, set())
        tree.append((path, type(module), shapes, tuple(_plain_attributes(module, read).items())))
    held = tuple((path, tuple(t.shape), t.dtype) for path, t in tensors_held(call.module))
    leaves, spec = flatten(call.args, call.kwargs)
    keys = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else constant_key(x) for x in leaves)
    hooks = tuple((path, frozen(hook)) for path, hook in hooks_within(call.module))
    given = (hooks, frozenset(call.alive), call.written, call.lost, call.stream_leaf, call.stream_output, call.added)
    return (tuple(tree), held, str(spec), keys, given)


def canonical(layer: TracedLayer) -> Hashable:
    """The graph as text, the weights that it reads, and all else that two layers of a kind share."""
    numbers = {node: f"%{i}" for i, node in enumerate(layer.graph.graph.nodes)}
    lines = []
    for node in layer.graph.graph.nodes:
        shape = tuple(node.meta["val"].shape) if has_tensor(node) else None
        target = node.target if node.op == "call_function" else node.op
        constant = _constant(getattr(layer.graph, node.target)) if node.op == "get_attr" else None
        args = torch.fx.map_arg((node.args, node.kwargs), lambda n: numbers[n])
        lines.append(f"{target} {args} {shape} {constant}")
    called = (layer.out_spec, layer.written, layer.outputs, layer.input_leaves, layer.stream_leaf)
    interface = tags.get(layer.graph, tags.Interface)
    weights = tuple(path for _, path in interface.weights)
    asked = (layer.shapes, layer.guards)  # of the sizes that a graph of the same operators is given
    return ("\n".join(lines), *map(str, called), weights, interface.added, interface.left, asked)


def _constant(value: object) -> object:
    """A constant tensor, or the body of a loop or a branch, as text would show it."""
    return value.tolist() if isinstance(value, torch.Tensor) else getattr(value, "code", value)
