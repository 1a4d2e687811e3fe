"""Places in which a layer leaves values beside its result, and paths to what it holds."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import nn

__all__ = ["LAYER", "Place", "Root", "Step", "follow", "held_at", "in_words", "prefixes", "put_values"]

Step = tuple[Literal["attribute", "item"], Hashable]
Root = tuple[Hashable, ...]  # ("layer",), ("argument", its position or keyword), ("global", module, name)
LAYER: Root = ("layer",)


@dataclass(frozen=True)
class Place:
    """Where a layer leaves a value: from the layer, an argument or a global, by these steps, and then in this way."""

    root: Root
    steps: tuple[Step, ...]
    way: Literal["attribute", "item", "append"]
    key: Hashable = None  # an attribute's name, or a key

    def __str__(self) -> str:
        last: Step = ("attribute", self.key) if self.way == "attribute" else ("item", self.key)
        return in_words(self.root, self.steps if self.way == "append" else (*self.steps, last))


def in_words(root: Root, steps: Sequence[Step]) -> str:
    """As code would say it: `mlp.losses[0]`."""
    text = {"layer": "", "hook": f"a hook on {root[-1]}"}.get(str(root[0]), f"{root[0]} {root[-1]}")
    for kind, key in steps:
        text += f"[{key!r}]" if kind == "item" else f".{key}" if text else str(key)
    return text


def prefixes(places: Iterable[Place]) -> frozenset[str]:
    """The attributes of a layer, by their dotted paths in it, in which or in whose values it leaves something."""
    found = set()
    for place in places:
        names: list[str] = []
        steps: tuple[Step, ...] = (*place.steps, ("attribute" if place.way == "attribute" else "item", place.key))
        for kind, key in steps if place.root == LAYER else ():
            if kind == "item":
                break
            names.append(str(key))
            found.add(".".join(names))
    return frozenset(found)


def put_values(
    places: Sequence[Place], values: Sequence[Any], layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Leaves values where the layer would have left them."""
    for place, value in zip(places, values, strict=True):
        holder = follow(place.root, place.steps, layer, args, kwargs)
        if place.way == "append":
            holder.append(value)
        elif place.way == "item":
            holder[place.key] = value
        else:
            setattr(holder, str(place.key), value)


def follow(root: Root, steps: Sequence[Step], layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What lies at the end of the steps."""
    found, last = layer, root[-1]
    if root[0] == "argument":
        found = kwargs[last] if isinstance(last, str) else args[last]  # type: ignore[call-overload]
    elif root[0] == "global":
        found = vars(sys.modules[str(root[1])])[str(last)]
    for kind, key in steps:
        found = found[key] if kind == "item" else getattr(found, str(key))
    return found


@cache
def _steps_of(path: str) -> tuple[Step, ...]:
    found: list[Step] = []
    for name, item in re.findall(r"([^.\[\]]+)|\[([^\]]+)\]", path):
        found.append(("item", ast.literal_eval(item)) if item else ("attribute", name))
    return tuple(found)


def held_at(layer: nn.Module, path: str) -> Any:
    """What a layer holds at a path such as `mlp.scales[0]`."""
    return follow(LAYER, _steps_of(path), layer, (), {})
