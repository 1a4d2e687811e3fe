"""What can be reached from a layer: all that its modules, its arguments and the globals of its code hold."""

from __future__ import annotations

import random
import types
from collections import UserDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from estfx.stand_ins import CHECKPOINTING, original_of
from estfx.tracing.effects.places import LAYER, Root, Step, in_words

__all__ = [
    "FLAGS",
    "HOOKS",
    "OF_EVERY_MODULE",
    "PLAIN",
    "classes_of",
    "hooks_within",
    "is_module",
    "names_in_code",
    "names_read",
    "reached",
    "tensors_held",
]

PLAIN = (bool, int, float, complex, str, bytes, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
FLAGS = frozenset({CHECKPOINTING, "_gradient_checkpointing_func"})  # they go around a program, not into it
LEAF_TYPES = frozenset({*PLAIN, torch.dtype, torch.device, torch.Size, nn.Parameter, types.FunctionType, type})
MOST = 20_000  # containers that are looked into
FOREIGN = frozenset(
    {"estfx", "torch", "numpy", "builtins", "logging", "threading", "weakref", "typing", "re", "collections"}
)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
RECORDERS = (  # whose hooks do nothing to what they see
    "transformers.utils.output_capturing",
    "lightning.fabric.wrappers",  # while a method is called through Fabric's wrapper, such as set_step
    "lightning_fabric.wrappers",
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
    for path, value in _held_by_hooks(layer):
        todo.append((value, ("hook", path), ()))
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
            hidden = OF_EVERY_MODULE if is_module(held) else frozenset()
            todo.extend(
                (x, root, (*steps, ("attribute", key)))
                for key, x in held.items()
                if key not in hidden and _leads_on(x) and id(x) not in own
            )


def is_module(held: object) -> bool:
    """Whether attributes are those of a module."""
    return isinstance(held, dict) and "_parameters" in held and "_modules" in held


def _leads_on(value: object) -> bool:
    if type(value) in LEAF_TYPES:  # most of what there is
        return False
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


# -- hooks ---------------------------------------------------------------------------------------------------------


def hooks_within(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The hooks of the modules in a layer, not those of the layer itself, with the modules' paths."""
    for path, module in layer.named_modules():
        for hooks in HOOKS if path else ():
            for hook in vars(module)[hooks].values():
                if getattr(hook, "__module__", None) not in RECORDERS:
                    yield path, hook


def _held_by_hooks(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, hook in hooks_within(layer):
        held = [getattr(hook, "__self__", None), hook]
        for cell in getattr(hook, "__closure__", None) or ():
            with suppress(ValueError):  # of an empty one
                held.append(cell.cell_contents)
        yield from ((path, value) for value in held if _leads_on(value))


# -- code ----------------------------------------------------------------------------------------------------------


def _globals_of(layer: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """What the code of the layer reads of its modules' globals, by module and name, if it can hold something."""
    found: dict[tuple[str, str], Any] = {}
    for cls in classes_of(layer):
        for space, name in names_read(cls):
            value = space.get(name)
            if _leads_on(value):
                found[str(space.get("__name__")), name] = value
    for (module, name), value in found.items():
        yield module, name, value


def classes_of(layer: nn.Module) -> list[Any]:
    """The classes of a layer's modules, as they were written."""
    return list(dict.fromkeys(original_of(type(module)) for module in layer.modules()))


@cache
def _functions_of(cls: Any) -> tuple[types.FunctionType, ...]:
    """The forward of a class of modules, and what it calls: methods, and functions of its package by their names."""
    package = cls.__module__.partition(".")[0]
    found: dict[types.CodeType, types.FunctionType] = {}
    todo = _attributes_of(cls, "forward")
    while todo:
        function = todo.pop()
        function = getattr(function, "__wrapped__", function)
        if isinstance(function, property):
            todo.append(function.fget)
        if not isinstance(function, types.FunctionType) or function.__code__ in found:
            continue
        found[function.__code__] = function
        for name in _codes_within(function.__code__)[0]:
            called = function.__globals__.get(name)
            if isinstance(called, types.FunctionType) and called.__module__.startswith(package):
                todo.append(called)
            todo.extend(_attributes_of(cls, name))
    return tuple(found.values())


def _attributes_of(cls: Any, name: str) -> list[Any]:
    """What the own bases of a class have under a name, past those that are hidden by it too."""
    return [vars(base)[name] for base in cls.__mro__ if _is_own(base) and name in vars(base)]


@cache
def names_read(cls: Any) -> tuple[tuple[dict[str, Any], str], ...]:
    """The global names, with the globals that they are of, that a class of modules and its helpers read."""
    read: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    for function in _functions_of(cls):
        space = function.__globals__
        read |= {(id(space), name): (space, name) for name in _codes_within(function.__code__)[0] if name in space}
    return tuple(read.values())


@cache
def names_in_code(cls: Any) -> frozenset[str]:
    """All names and texts in the code of a class of modules and its helpers: no attribute of another name is read."""
    return frozenset().union(*(each for f in _functions_of(cls) for each in _codes_within(f.__code__)))


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in FOREIGN


def _codes_within(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The names and the texts of a piece of code and of those within it."""
    names, texts = set(code.co_names), {constant for constant in code.co_consts if isinstance(constant, str)}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _codes_within(constant)
            names, texts = names | inner[0], texts | inner[1]
    return names, texts
