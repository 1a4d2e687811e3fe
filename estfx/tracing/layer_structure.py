"""What a layer is made of, so that a change of it after `transform`, such as adapters put into it, is noticed.

A graph knows nothing of modules that were added since it was made, nor of a switch that was turned in one. Both are
seen here: names of modules, parameters and buffers, the code of each module, and the plain values that it holds.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from estfx.tracing.effects import FLAGS, HOOKS, OF_EVERY_MODULE, frozen, hooks_within

__all__ = ["Changes", "Snapshot", "changed_places", "changes"]

Item = tuple[Any, ...]  # the path of a module in the layer, and what was found there
Structure = tuple[Item, ...]
Changes = frozenset[tuple[str, Item]]
PLAIN = (bool, int, float, str, type(None))
LEFT_OUT = OF_EVERY_MODULE | FLAGS


class Snapshot:
    """A layer as it stood: `same` says, at a few microseconds a module, whether it may stand otherwise now."""

    def __init__(self, layer: nn.Module, name: str, left: frozenset[str] = frozenset()) -> None:
        """`left`: attributes that the layer itself leaves values in, by their paths in it, of which nothing is told."""
        self.structure = _structure_of(layer, name, left)
        self._modules = [_Seen(module, _names_in(left, path)) for path, module in layer.named_modules()]
        self._hooks = [seen.held[hooks] for seen in self._modules[1:] for hooks in HOOKS]  # of modules in the layer
        self._num_hooks, self._handles = sum(map(len, self._hooks)), RemovableHandle.next_id
        modes = [seen.held["training"] for seen in self._modules]
        self.trains_in_part = modes[0] and not all(modes)  # a module in the layer is in eval mode

    def same(self) -> bool:
        return self._same_hooks() and all(seen.same() for seen in self._modules)

    def _same_hooks(self) -> bool:
        if self._num_hooks == 0 and self._handles == RemovableHandle.next_id:  # none anywhere since: none to be counted
            return True
        self._handles = RemovableHandle.next_id
        return sum(map(len, self._hooks)) == self._num_hooks


class _Seen:
    def __init__(self, module: nn.Module, left: frozenset[str] = frozenset()) -> None:
        self.left = left
        self.held = vars(module)
        self.code = type(module).forward
        self.module = module
        self.values = list(self._held().values())
        self.children = dict(module._modules)
        self.tensors = [*module._parameters, *module._buffers]
        containers = [v for k, v in self._held().items() if k not in LEFT_OUT and isinstance(v, (dict, list, set))]
        self.containers = [(value, value.copy()) for value in containers if _is_plain(value)]

    def _held(self) -> dict[str, Any]:
        return {k: v for k, v in self.held.items() if k not in self.left} if self.left else self.held

    def same(self) -> bool:
        held = self._held() if self.left else self.held
        return (
            len(held) == len(self.values)
            and all(map(operator.is_, held.values(), self.values))
            and held["_modules"] == self.children
            and [*held["_parameters"], *held["_buffers"]] == self.tensors
            and type(self.module).forward is self.code
            and all(value == before for value, before in self.containers)
        )


def _is_plain(value: object) -> bool:
    """Whether a container holds, at its first level, plain values alone, which can be compared."""
    items = value.values() if isinstance(value, dict) else value
    return all(isinstance(item, PLAIN) for item in items)  # type: ignore[attr-defined]


def _names_in(paths: frozenset[str], module: str) -> frozenset[str]:
    """Of dotted paths, the names of those that lie in a module."""
    split = (path.rpartition(".") for path in paths)
    return frozenset(name for owner, _, name in split if owner == module)


def _structure_of(layer: nn.Module, name: str, left: frozenset[str]) -> Structure:
    """Equal for one layer at two times only if it runs the same code on weights of the same names.

    `name` is the layer's own, which may stand in texts that its modules hold.
    """
    found: list[Item] = []
    todo: list[tuple[str, nn.Module]] = [("", layer)]
    while todo:
        path, module = todo.pop()
        held = vars(module)
        found.append((path, type(module).forward, *sorted(held["_parameters"]), None, *sorted(held["_buffers"])))
        for key, value in held.items():
            if key not in LEFT_OUT and f"{path}.{key}".removeprefix(".") not in left:
                plain = _frozen(value, name)
                if plain is not None:
                    found.append((path, key, plain))
        todo.extend((f"{path}.{key}", child) for key, child in held["_modules"].items() if child is not None)
    found.extend((f".{path}", "hook", frozen(hook)) for path, hook in hooks_within(layer))
    return tuple(found)


def _frozen(value: object, name: str) -> Hashable:
    """A plain value, a function, or a container of such; None for anything else."""
    if isinstance(value, str):
        return value.replace(name, "")
    if isinstance(value, dict):
        return tuple((str(key), _frozen(item, name)) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_frozen(item, name) for item in value)
    return frozen(value)


def changes(before: Structure, after: Structure) -> Changes:
    """What one structure has and the other has not; the same for all layers in which the same was changed."""
    gone, new = set(before) - set(after), set(after) - set(before)
    return frozenset({("gone", item) for item in gone} | {("new", item) for item in new})


def changed_places(changed: Changes) -> list[str]:
    """The modules that changes concern, by their path in the layer; an empty path is the layer."""
    return sorted({item[0].removeprefix(".") for _, item in changed})
