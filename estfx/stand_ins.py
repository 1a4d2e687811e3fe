"""Classes that stand in for a class of somebody else's: of the same name, below it, and with something of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["original_of", "stand_in_for"]


class _Unannounced:
    """Keeps a class that is stood in for from being told of it by `__init_subclass__`, which may refuse anything."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass


def stand_in_for(cls: type[Any], body: Mapping[str, Any], *mixins: type[Any]) -> type[Any]:
    """A subclass that an instance of `cls` may be given as its `__class__`. Its mixins come first."""
    whole = {"__module__": cls.__module__, "__doc__": cls.__doc__, **body}
    metaclass: Any = type(cls)
    made: type[Any] = metaclass(cls.__name__, (_Unannounced, *mixins, cls), whole)
    made.__qualname__ = cls.__qualname__
    return made


def original_of(cls: type[Any]) -> type[Any]:
    """The class that a stand-in stands for; any other class itself."""
    while _Unannounced in cls.__bases__:
        cls = cls.__bases__[-1]
    return cls
