"""Numbers that a model's code reads, where they stand, and how one of them is given another value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from estfx.cutting_entry import ENTRY
from estfx.tracing import OF_EVERY_MODULE

__all__ = ["Edit", "Path", "applied", "apply_edits", "for_fewer_layers", "held_numbers", "held_values", "value_at"]

Path = tuple[str | int, ...]  # from a module: submodules, attributes, keys of dictionaries
DEPTH = 4  # objects within objects that are looked into
MISSING = object()


@dataclass(frozen=True)
class Edit:
    """A number, or a list of them, that code reads, and the value that it has in a cut model."""

    path: Path
    value: Any

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))} = {self.value}"

    def within(self, prefix: Sequence[str | int]) -> Edit:
        """The same, as seen from a module that holds this one."""
        return Edit((*prefix, *self.path), self.value)


def value_at(root: object, path: Path) -> Any:
    """What stands at a path."""
    found: Any = root
    for step in path:
        found = _child(found, step)
    return found


def apply_edits(root: object, edits: Sequence[Edit]) -> list[tuple[Any, str | int, Any]]:
    """Gives the numbers their values; returns what is needed to undo it, last first.

    An object that is no module, such as a configuration, may be shared: the module that holds it gets a copy of it.
    """
    undo: list[tuple[Any, str | int, Any]] = []
    for edit in edits:
        holder: Any = root
        for step in edit.path[:-1]:
            child = _child(holder, step)
            if not isinstance(child, nn.Module):
                undo.append((holder, step, child))
                child = copy.copy(child)
                _set(holder, step, child)
            holder = child
        old = _child(holder, edit.path[-1])
        undo.append((holder, edit.path[-1], old))
        _set(holder, edit.path[-1], tuple(edit.value) if isinstance(old, tuple) else edit.value)
    return undo[::-1]


@contextmanager
def applied(root: object, edits: Sequence[Edit]) -> Iterator[None]:
    """While it lasts, the numbers have their values."""
    undo = apply_edits(root, edits)
    try:
        yield
    finally:
        for holder, step, old in undo:
            _set(holder, step, old)


def held_numbers(root: nn.Module, leave_out: Sequence[nn.Module] = ()) -> Iterator[tuple[Path, Any, Any]]:
    """Integers and lists of them in a module and in what it holds: their paths, their values, and what holds them."""
    outside = {id(inner) for module in leave_out for inner in module.modules()}
    for name, module in root.named_modules():
        if id(module) not in outside:
            steps = tuple(name.split(".")) if name else ()
            yield from _numbers_in(module, steps, DEPTH, set())


def for_fewer_layers(value: Any, whole: int, left: Sequence[int]) -> Any | None:
    """A list or a dictionary of something for each layer, or of positions of layers, as it is when some are left out.

    None if it is neither. `whole`: how many layers there were; `left`: the positions of those that stay.
    """
    new = {old: number for number, old in enumerate(left)}
    if isinstance(value, (list, tuple)):
        if len(value) == whole:
            return type(value)(value[i] for i in left)
        positions = value and all(_is_number(x) and 0 <= x < whole for x in value) and len(set(value)) == len(value)
        return type(value)(new[x] for x in value if x in new) if positions else None
    return None


def held_values(root: Any) -> Iterator[tuple[Path, Any]]:
    """Numbers, lists, and what is None, in an object such as a configuration and in those that it holds."""
    for path, value, _ in _values_in(root, (), DEPTH, set()):
        yield path, value


def _values_in(holder: Any, steps: Path, depth: int, above: set[int]) -> Iterator[tuple[Path, Any, Any]]:
    own = holder if isinstance(holder, Mapping) else vars(holder)
    for key, value in list(own.items()):
        if not isinstance(key, (str, int)) or key == ENTRY:
            continue
        if value is None or _is_number(value) or isinstance(value, (list, tuple)):
            yield (*steps, key), value, holder
        elif depth and id(value) not in above and _may_hold(value):
            yield from _values_in(value, (*steps, key), depth - 1, above | {id(holder)})


def _numbers_in(holder: Any, steps: Path, depth: int, above: set[int]) -> Iterator[tuple[Path, Any, Any]]:
    own = holder if isinstance(holder, Mapping) else vars(holder)
    hidden = OF_EVERY_MODULE if isinstance(holder, nn.Module) else frozenset()
    for key, value in list(own.items()):
        if not isinstance(key, (str, int)) or key in hidden or key == ENTRY:
            continue
        if _is_number(value) or (isinstance(value, (list, tuple)) and value and all(map(_is_number, value))):
            yield (*steps, key), value, holder
        elif depth and id(value) not in above and _may_hold(value):
            yield from _numbers_in(value, (*steps, key), depth - 1, above | {id(holder)})


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _may_hold(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    if isinstance(value, (nn.Module, type)) or callable(value):
        return False
    package = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and package not in ("torch", "builtins", "numpy", "estfx", "logging")


def _child(holder: Any, step: str | int) -> Any:
    if isinstance(holder, Mapping):
        return holder[step]
    own = vars(holder).get(str(step), MISSING)
    return getattr(holder, str(step)) if own is MISSING else own


def _set(holder: Any, step: str | int, value: Any) -> None:
    if isinstance(holder, Mapping):
        holder[step] = value  # type: ignore[index]
    elif str(step) in vars(holder):
        vars(holder)[str(step)] = value
    else:
        object.__setattr__(holder, str(step), value)
