"""Classes that stand in for a class of somebody else's: of the same name, below it, and with something of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CHECKPOINTING", "MadeBy", "as_original", "checkpointed", "made_of", "original_of", "stand_in_for"]

CHECKPOINTING = "gradient_checkpointing"  # the flag on transformers' layers


class _Unannounced:
    """Keeps a class that is stood in for from being told of it by `__init_subclass__`, which may refuse anything."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass


@dataclass(frozen=True)
class MadeBy:
    """How a model was transformed, so that it is done again where a pickle of it is read."""

    remake: Callable[..., None]  # of a plain model and what a pickle holds
    arguments: Mapping[str, Any]


def stand_in_for(cls: type[Any], body: Mapping[str, Any], *mixins: type[Any]) -> type[Any]:
    """A subclass that an instance of `cls` may be given as its `__class__`. Its mixins come first."""
    whole = {"__module__": cls.__module__, "__doc__": cls.__doc__, **body}
    if "__reduce_ex__" in body and not hasattr(cls, "__deepcopy__"):
        whole["__deepcopy__"] = _copied  # else a copy would be made as from a pickle
    metaclass: Any = type(cls)
    made: type[Any] = metaclass(cls.__name__, (_Unannounced, *mixins, cls), whole)
    made.__qualname__ = cls.__qualname__
    return made


def checkpointed(made: type[Any]) -> type[Any]:
    """A stand-in whose `forward` is checkpointed as that of the class itself, where the class sees to that.

    From 5.23 on, transformers puts its checkpointing around the `forward` of each class below its own base of layers,
    when the class is made, and only the outermost one counts. Before, it was in `__call__`.
    """
    for base in made.__mro__:
        announced = vars(base).get("__init_subclass__")
        if announced is not None and CHECKPOINTING in vars(base):
            announced.__func__(made)
            break
    return made


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    made = made_of(type(self))
    memo[id(self)] = made
    made.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return made


def as_original(instance: Any, *left_out: str, **added: Any) -> tuple[Any, ...]:
    """What a pickle holds of an instance: the class that is stood in for, and its attributes but for some."""
    state = {name: value for name, value in vars(instance).items() if name not in left_out}
    return made_of, (original_of(type(instance)),), {**state, **added}


def made_of(cls: type[Any]) -> Any:
    """An instance that is to be given its attributes."""
    return object.__new__(cls)


def original_of(cls: type[Any]) -> type[Any]:
    """The class that a stand-in stands for; any other class itself."""
    while _Unannounced in cls.__bases__:
        cls = cls.__bases__[-1]
    return cls
