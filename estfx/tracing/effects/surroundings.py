"""What the code of layers reads beside the attributes of their modules: it is looked at again at every step.

A graph keeps what the code read when it was traced: values of a configuration, entries of dictionaries, functions and
numbers among the globals of a module. Once one of them is another, the graph is no longer the layer's.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn

from estfx.tracing.effects.places import LAYER, follow, in_words
from estfx.tracing.effects.reachable import PLAIN, classes_of, is_module, names_in_code, names_read, reached

__all__ = ["Surroundings", "frozen"]

Item = tuple[Hashable, ...]
ALIASES = "attribute_map"  # of a configuration of transformers: other names of its attributes


def frozen(value: object) -> Hashable:
    """Equal for two values only if code that reads them does the same; None for what can change in itself."""
    if isinstance(value, PLAIN):
        return (type(value).__name__, value)  # True is 1, and 1 is 1.0
    if isinstance(value, Enum):
        return (type(value).__qualname__, value.name)
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.dtype)
    if isinstance(value, functools.partial):
        words = tuple((name, frozen(each)) for name, each in sorted(value.keywords.items()))
        return ("partial", frozen(value.func), tuple(map(frozen, value.args)), words)
    if isinstance(value, (torch.dtype, torch.device)):
        return (type(value).__name__, value)  # each layer may hold a device of its own, which is the same one
    if isinstance(value, type) or callable(value):
        return (getattr(value, "__qualname__", str(value)), id(value))
    return None


class _Watched:
    """Some entries of a dictionary, or all of it, or of a list."""

    def __init__(self, holder: Any, name: str, keys: Iterable[Any] | None) -> None:
        self.holder, self.name = holder, name
        self.keys = None if keys is None else [key for key in keys if key in holder]
        self.values = self._values()

    def _values(self) -> list[Any]:
        if self.keys is not None:
            return [dict.get(self.holder, key) for key in self.keys]
        return (
            list(self.holder) if isinstance(self.holder, list) else [*dict.keys(self.holder), *dict.values(self.holder)]
        )

    def same(self) -> bool:
        now = self._values()
        return len(now) == len(self.values) and all(map(operator.is_, now, self.values))

    def items(self) -> Iterator[Item]:
        """What stands there now, and it is what will be compared with."""
        self.values = self._values()
        if isinstance(self.holder, list):
            yield from ((f"{self.name}[{i}]", frozen(value)) for i, value in enumerate(self.holder))
            return
        for key in self.keys if self.keys is not None else list(dict.keys(self.holder)):
            yield (f"{self.name}.{key}", frozen(dict.get(self.holder, key)))


class Surroundings:
    """What the layers of a model read around them, as it was when they were traced."""

    def __init__(self, layers: Mapping[str, nn.Module], left: frozenset[str]) -> None:
        """`left`: the attributes in which layers leave values, by their paths in a layer."""
        self._layers, self._left = layers, left
        self._watched = list(_watched(layers, left))
        self.changes: frozenset[tuple[str, Item]] = frozenset()
        self._first = self._items()

    def _items(self) -> frozenset[Item]:
        return frozenset(item for watched in self._watched for item in watched.items())

    def twin(self, layers: Mapping[str, nn.Module], left: frozenset[str]) -> Surroundings:
        """Those of a copy of the model, compared with what was there when the original was traced."""
        made = Surroundings(layers, left)
        made._first = self._first
        made._compare(made._items())
        return made

    def look(self, anew: bool = False) -> None:
        """Notices what is other than at first; `anew`, if layers may hold other objects now."""
        if anew or not all(watched.same() for watched in self._watched):
            self._watched = list(_watched(self._layers, self._left))
            self._compare(self._items())

    def _compare(self, now: frozenset[Item]) -> None:
        gone, new = self._first - now, now - self._first
        found = frozenset({("gone", item) for item in gone} | {("new", item) for item in new})
        if found != self.changes:  # else it stays the same object
            self.changes = found


def _watched(layers: Mapping[str, nn.Module], left: frozenset[str]) -> Iterator[_Watched]:
    seen: set[int] = set()
    spaces: dict[int, tuple[dict[str, Any], dict[str, None]]] = {}  # globals, and the names that are read of them
    for layer in layers.values():
        classes = classes_of(layer)
        names: frozenset[str] = frozenset().union(*map(names_in_code, classes))
        for space, name in (each for cls in classes for each in names_read(cls)):
            spaces.setdefault(id(space), (space, {}))[1][name] = None
        for holder, root, steps in reached(layer):
            if not isinstance(holder, (dict, list)) or id(holder) in seen or is_module(holder):
                continue
            is_object = bool(steps) and steps[-1] == ("attribute", "__dict__")
            steps = steps[:-1] if is_object else steps
            words = in_words(root, steps)
            if root == LAYER and any(words == each or words.startswith((f"{each}.", f"{each}[")) for each in left):
                continue
            seen.add(id(holder))
            keys = names | _real_names(follow(root, steps, layer, (), {}), names) if is_object else None
            yield _Watched(holder, words, keys)
    for space, read in spaces.values():
        yield _Watched(space, f"global {space.get('__name__')}", read)


def _real_names(value: object, names: frozenset[str]) -> frozenset[str]:
    """Of a configuration, the attributes that stand behind other names."""
    aliases = getattr(type(value), ALIASES, None)
    return (
        frozenset(real for alias, real in aliases.items() if alias in names)
        if isinstance(aliases, dict)
        else frozenset()
    )
