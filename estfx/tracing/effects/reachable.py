"""What can be reached from a layer: all that its modules, its arguments and the globals of its code hold."""

from __future__ import annotations

import random
import types
from collections import UserDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from estfx.tracing.effects.places import LAYER, Root, Step, in_words

__all__ = ["OF_EVERY_MODULE", "PLAIN", "is_module", "reached", "tensors_held"]

PLAIN = (bool, int, float, complex, str, bytes, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
MOST = 20_000  # containers that are looked into
FOREIGN = frozenset(
    {"estfx", "torch", "numpy", "builtins", "logging", "threading", "weakref", "typing", "re", "collections"}
)
OPAQUE = (torch.Tensor, types.ModuleType, types.FunctionType, types.MethodType, type, Enum, np.ndarray, *PLAIN)


def reached(
    layer: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, Root, tuple[Step, ...]]]:
    """Lists, dictionaries, attributes, sets, random generators and tensors, each once, with the way to them.

    Parameters, buffers and whatever lies in a module outside of the layer are left out.
    """
    own = {id(module): path for path, module in layer.named_modules()}
    arguments: dict[Any, Any] = {**dict(enumerate(args)), **(kwargs or {})}
    todo: list[tuple[Any, Root, tuple[Step, ...]]] = [
        (module, LAYER, tuple(("attribute", name) for name in path.split(".") if path))
        for path, module in layer.named_modules()
    ]
    for key, value in arguments.items():
        if isinstance(value, (list, dict, UserDict)):
            todo.append((value, ("argument", key), ()))
    for module, name, value in _globals_of(layer):
        todo.append((value, ("global", module, name), ()))
    seen: set[int] = set()
    for number, (value, root, steps) in enumerate(todo):  # it grows meanwhile
        if id(value) in seen or number > MOST:
            continue
        seen.add(id(value))
        if isinstance(value, (torch.Tensor, random.Random, np.random.Generator)):
            yield value, root, steps
        elif isinstance(value, (list, tuple)):
            if isinstance(value, list):
                yield value, root, steps
            todo.extend((x, root, (*steps, ("item", i))) for i, x in enumerate(value) if _leads_on(x))
        elif isinstance(value, set):
            yield value, root, steps
        elif isinstance(value, dict):
            yield value, root, steps
            todo.extend((x, root, (*steps, ("item", key))) for key, x in dict.items(value) if _leads_on(x))
        elif isinstance(value, nn.Module) or _has_attributes(value):
            held = vars(value)
            yield held, root, (*steps, ("attribute", "__dict__"))
            seen.add(id(held))
            todo.extend(
                (x, root, (*steps, ("attribute", key)))
                for key, x in held.items()
                if _leads_on(x) and id(x) not in own and not (is_module(held) and key in OF_EVERY_MODULE)
            )


def is_module(held: dict[Any, Any]) -> bool:
    """Whether attributes are those of a module."""
    return "_parameters" in held and "_modules" in held


def _leads_on(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, nn.Module):
        return False
    return isinstance(value, (list, tuple, dict, set, random.Random, np.random.Generator)) or _has_attributes(value)


def _has_attributes(value: object) -> bool:
    """Whether it is an object of somebody's own class."""
    if isinstance(value, OPAQUE) or not hasattr(value, "__dict__"):
        return False
    return isinstance(value, UserDict) or type(value).__module__.partition(".")[0] not in FOREIGN


def tensors_held(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a layer that are neither parameters nor buffers, each with a path that `held_at` follows."""
    for value, root, steps in reached(layer):
        if isinstance(value, torch.Tensor) and root == LAYER and all(_can_be_said(key) for _, key in steps):
            yield in_words(root, steps), value


def _can_be_said(key: Hashable) -> bool:
    return isinstance(key, int) or ((isinstance(key, str) and key.isidentifier()) or str(key).isdecimal())


# -- globals -------------------------------------------------------------------------------------------------------


def _globals_of(layer: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """What the code of the layer reads of its modules' globals, by module and name, if it can hold something."""
    found: dict[tuple[str, str], Any] = {}
    for cls in dict.fromkeys(type(module) for module in layer.modules()):
        for space, name in _names_read(cls):  # type: ignore[arg-type]
            value = space.get(name)
            if _leads_on(value):
                found[str(space.get("__name__")), name] = value
    for (module, name), value in found.items():
        yield module, name, value


@cache
def _names_read(cls: type) -> tuple[tuple[dict[str, Any], str], ...]:
    """The global names, with the globals that they are of, that a class of modules and its helpers read."""
    todo = [f for base in cls.__mro__ if _is_own(base) for f in vars(base).values()]
    package = cls.__module__.partition(".")[0]
    seen: set[types.CodeType] = set()
    names: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    while todo:
        function = todo.pop()
        function = getattr(function, "__wrapped__", function)
        if not isinstance(function, types.FunctionType) or function.__code__ in seen:
            continue
        seen.add(function.__code__)
        for name in _names_in(function.__code__):
            space = function.__globals__
            if name in space and (id(space), name) not in names:
                names[id(space), name] = (space, name)
                value = space[name]
                if isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == package:
                    todo.append(value)
    return tuple(names.values())


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in FOREIGN


def _names_in(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
