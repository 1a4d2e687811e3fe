"""Numbers that a layer is given and never looks at, such as the count of a batch's tokens, which is for the loss.

They change with every batch, and a graph would be made for each of their values. Whether one is read shows when a
stand-in, with which nothing can be done, is handed through the layer in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

__all__ = ["NUMBERS", "without_unread"]

NUMBERS = (int, float)
T = TypeVar("T")


class _Read(Exception):
    """Something was done with a stand-in."""


class _StandIn:
    """Passes for a number of its type as long as nobody asks for more than the type."""

    def __init__(self, kind: type) -> None:
        object.__setattr__(self, "kind", kind)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance is to say what it says of the number
        return object.__getattribute__(self, "kind")

    __hash__ = object.__hash__


def _refuse(self: object, *others: object) -> NoReturn:
    raise _Read


_ASKED = {name for kind in NUMBERS for name in dir(kind) if not hasattr(object, name)}  # what numbers alone can do
for _name in (
    *_ASKED,
    "__bool__",
    "__eq__",
    "__format__",
    "__getattr__",
    "__ge__",
    "__gt__",
    "__le__",
    "__lt__",
    "__ne__",
):
    setattr(_StandIn, _name, _refuse)
for _name in ("__call__", "__contains__", "__getitem__", "__iter__", "__len__", "__repr__", "__str__"):
    setattr(_StandIn, _name, _refuse)


def without_unread(make: Callable[[list[Any]], T], leaves: list[Any]) -> tuple[T, frozenset[int]]:
    """`make(leaves)`, and which of the leaves are numbers that it does not read."""
    numbers = [i for i, leaf in enumerate(leaves) if type(leaf) in NUMBERS]
    if not numbers:
        return make(leaves), frozenset()
    made = _tried(make, leaves, numbers)
    if made is None and len(numbers) > 1:
        numbers = [i for i in numbers if _tried(make, leaves, [i]) is not None]
        made = _tried(make, leaves, numbers) if numbers else None
    return (make(leaves), frozenset()) if made is None else (made, frozenset(numbers))


def _tried(make: Callable[[list[Any]], T], leaves: list[Any], positions: list[int]) -> T | None:
    """What is made with stand-ins in some places, or None if it cannot be."""
    given = [_StandIn(type(leaf)) if i in positions else leaf for i, leaf in enumerate(leaves)]
    try:
        return make(given)
    except Exception:  # whatever came of a stand-in; without them, make says what is wrong
        return None
