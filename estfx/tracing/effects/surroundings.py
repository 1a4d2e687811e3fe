"""What the code of layers reads beside the attributes of their modules: it is looked at again at every step.

A graph keeps what the code read when it was traced: values of a configuration, entries of dictionaries, functions and
numbers among the globals of a module. Once one of them is another, the graph is no longer the layer's.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Iterator, Mapping
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
    if isinstance(value, (type, torch.dtype, torch.device)) or callable(value):
        return (getattr(value, "__qualname__", str(value)), id(value))
    return None


class _Watched:
    """Some entries of a dictionary, or all of a list."""

    def __init__(self, holder: Any, name: str, keys: frozenset[Any] | None) -> None:
        self.holder, self.name, self.keys = holder, name, keys
        self.values = self._values()

    def _values(self) -> list[Any]:
        if isinstance(self.holder, list):
            return list(self.holder)
        items = dict.items(self.holder)
        return [each for pair in items if self.keys is None or pair[0] in self.keys for each in pair]

    def same(self) -> bool:
        now = self._values()
        return len(now) == len(self.values) and all(map(operator.is_, now, self.values))

    def items(self) -> Iterator[Item]:
        """What stands there now, and it is what will be compared with."""
        self.values = self._values()
        if isinstance(self.holder, list):
            pairs: Any = enumerate(self.holder)
        else:
            pairs = [(k, v) for k, v in dict.items(self.holder) if self.keys is None or k in self.keys]
        for key, value in pairs:
            yield (f"{self.name}[{key!r}]" if isinstance(self.holder, list) else f"{self.name}.{key}", frozen(value))


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
    globals_seen: set[tuple[int, str]] = set()
    for layer in layers.values():
        classes = classes_of(layer)
        names: frozenset[str] = frozenset().union(*map(names_in_code, classes))
        for space, name in (each for cls in classes for each in names_read(cls)):
            if (id(space), name) not in globals_seen:
                globals_seen.add((id(space), name))
                yield _Watched(space, f"global {space.get('__name__')}", frozenset({name}))
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


def _real_names(value: object, names: frozenset[str]) -> frozenset[str]:
    """Of a configuration, the attributes that stand behind other names."""
    aliases = getattr(type(value), ALIASES, None)
    return (
        frozenset(real for alias, real in aliases.items() if alias in names)
        if isinstance(aliases, dict)
        else frozenset()
    )
