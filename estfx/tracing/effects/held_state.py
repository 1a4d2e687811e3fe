"""What a layer can reach beside its result, and what a call of it changes there.

A layer may leave a value in an attribute, in a list or a dictionary that it was given, in an object that it holds, or
in a global of its module: the auxiliary losses of mixtures of experts are handed on in such ways. Whatever can be
reached is copied at its first level before a call, and compared with what is there after it.
"""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.tracing.effects.places import LAYER, Place, Root, Step, in_words
from estfx.tracing.effects.reachable import FLAGS, OF_EVERY_MODULE, PLAIN, is_module, reached

__all__ = ["Change", "HeldState", "held_tensors_as_before"]


@dataclass(frozen=True)
class Change:
    """What a call has changed: the place, with the value that is there now, or what cannot be done again."""

    holder: Any  # the list, dictionary or attributes
    place: Place
    value: Any
    old: Any = None
    reason: str = ""  # why a graph cannot leave it; empty if it can


def _of_hook(change: Change) -> str:
    """Its reason, or that of what a hook changes: a graph runs no hooks."""
    if change.reason or change.place.root[0] != "hook":
        return change.reason
    return f"runs {in_words(change.place.root, ())}, which keeps something"


class _Absent:
    pass


ABSENT = _Absent()


@dataclass(frozen=True)
class _Held:
    holder: Any
    root: Root
    steps: tuple[Step, ...]
    before: Any

    def changes(self) -> Iterator[Change]:
        if isinstance(self.holder, list):
            yield from self._of_list()
        elif isinstance(self.holder, dict):
            yield from self._of_dict()
        elif str(_state(self.holder)) != str(self.before):  # of a set, or of random numbers
            yield self._lost(self.holder, "changes")

    def _lost(self, value: Any, what: str) -> Change:
        place = Place(self.root, self.steps, "append")
        return Change(self.holder, place, value, reason=f"{what} `{place}`")

    def _of_list(self) -> Iterator[Change]:
        known, now = self.before, self.holder
        if len(now) == len(known) and all(a is b for a, b in zip(now, known, strict=True)):
            return
        if len(now) < len(known) or any(not _same(a, b) for a, b in zip(now, known, strict=False)):
            yield self._lost(now, "changes")
            return
        for value in now[len(known) :]:
            place = Place(self.root, self.steps, "append")
            yield Change(now, place, value, reason="" if _can_be_left(value) else f"appends to `{place}`")

    def _of_dict(self) -> Iterator[Change]:
        own = is_module(self.holder)
        now = dict(dict.items(self.holder))  # past methods of a class of its own, here and below
        if len(now) == len(self.before) and all(map(operator.is_, now.values(), self.before.values())):
            return
        for key in {**self.before, **now}:
            if own and (key in OF_EVERY_MODULE or key in FLAGS or key.startswith("_estfx")):
                continue
            value, old = now.get(key, ABSENT), self.before.get(key, ABSENT)
            if _same(value, old):
                continue
            is_attribute = bool(self.steps) and self.steps[-1] == ("attribute", "__dict__")
            steps = self.steps[:-1] if is_attribute else self.steps
            place = Place(self.root, steps, "attribute" if is_attribute else "item", key)
            if value is ABSENT:
                yield Change(self.holder, place, value, old, f"deletes `{place}`")
            else:
                yield Change(self.holder, place, value, old, "" if _can_be_left(value) else f"sets `{place}` anew")


def _state(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(dict.items(value))
    if isinstance(value, list):
        return list(value)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value.bit_generator.state)
    return set(value)


def _same(value: Any, old: Any) -> bool:
    """Whether nothing was set: the same object, an equal number or text, or the size that stood there already."""
    if value is old:
        return True
    if isinstance(value, (torch.SymInt, torch.SymFloat)) and isinstance(old, (int, float)):
        return bool(value.node.hint == old)
    if isinstance(value, (list, tuple)) and isinstance(old, (list, tuple)):
        return len(value) == len(old) and all(map(_same, value, old))
    return isinstance(value, PLAIN) and type(value) is type(old) and bool(value == old)


def _can_be_left(value: Any) -> bool:
    """Whether a value is made of tensors, so that a graph can give it."""
    leaves = pytree.tree_leaves(value)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, nn.Parameter)]
    return bool(tensors) and all(isinstance(leaf, (torch.Tensor, *PLAIN)) for leaf in leaves)


class HeldState:
    """All that a layer, its arguments and the globals of its code hold, as it stands."""

    def __init__(self, layer: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self._held = [
            _Held(holder, root, steps, _state(holder))
            for holder, root, steps in reached(layer, args, kwargs or {})
            if not isinstance(holder, torch.Tensor)
        ]
        self._random = (random.getstate(), _numpy_state())

    def changes(self) -> list[Change]:
        """What was changed since, in no more places than there were."""
        found = [change for held in self._held for change in held.changes()]
        found = [replace(change, reason=_of_hook(change)) for change in found]
        for name, before, now in zip(
            ("random", "numpy.random"), self._random, (random.getstate(), _numpy_state()), strict=True
        ):
            if before != now:
                reason = f"draws numbers of `{name}`, which a graph would draw once and for all"
                found.append(Change(None, Place(LAYER, (), "append"), None, reason=reason))
        return found

    def put_back(self, changes: Sequence[Change] | None = None) -> None:
        """Undoes such changes, or all there are; a number or a text that was set to another stays."""
        wanted = None if changes is None else {(id(change.holder), change.place.key) for change in changes}
        for held in self._held:
            holder = held.holder
            if isinstance(holder, dict):
                for key in {**held.before, **dict(dict.items(holder))}:
                    if wanted is None or (id(holder), key) in wanted:
                        _put_back_key(holder, key, held.before.get(key, ABSENT))
            elif wanted is not None and (id(holder), None) not in wanted:
                continue
            elif isinstance(holder, list):
                if len(holder) != len(held.before) or any(map(operator.is_not, holder, held.before)):
                    holder[:] = held.before
            elif isinstance(holder, set) and holder != held.before:
                holder.clear()
                holder.update(held.before)
            elif isinstance(holder, random.Random):
                holder.setstate(held.before)
            elif isinstance(holder, np.random.Generator):
                holder.bit_generator.state = held.before
        random.setstate(self._random[0])
        np.random.set_state(_from_text(self._random[1]))


def _put_back_key(holder: dict[Any, Any], key: Hashable, old: Any) -> None:
    value = dict.get(holder, key, ABSENT)
    if value is old or (isinstance(value, PLAIN) and isinstance(old, PLAIN)):
        return
    if old is ABSENT:
        del holder[key]
    else:
        holder[key] = old


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, keys.tobytes(), *rest)  # type: ignore[union-attr]


def _from_text(state: tuple[Any, ...]) -> tuple[Any, ...]:
    return (state[0], np.frombuffer(state[1], dtype=np.uint32), *state[2:])


@contextmanager
def held_tensors_as_before(layer: nn.Module) -> Iterator[None]:
    """Afterwards the tensors that a layer just holds, neither parameters nor buffers, have the values from before."""
    tensors = (value for value, *_ in reached(layer) if isinstance(value, torch.Tensor) and not value.is_inference())
    held = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, before in held:
                if tensor._version != version:
                    tensor.copy_(before)
