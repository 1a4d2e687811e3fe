"""Dictionaries among a layer's arguments, into which one layer writes what later ones read: shared keys and values.

What a layer finds in one are inputs of its graph, and what it writes there are outputs, put into the dictionary again
after the graph has run.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Entry", "open_mappings", "put_entries", "with_entries", "written_entries"]


@dataclass(frozen=True)
class Entry:
    """An entry of a dictionary that a layer is given."""

    argument: int | str  # a position, or a keyword
    key: Hashable


def _arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    found: dict[int | str, Any] = dict(enumerate(args))
    return found | kwargs


def open_mappings(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Lets pytrees look into dictionaries of a class of their own; into plain ones they do."""
    for value in _arguments(args, kwargs).values():
        if isinstance(value, UserDict) and type(value) not in pytree.SUPPORTED_NODES:
            _register(type(value))


def _register(cls: type[Any]) -> None:
    def unflatten(values: Any, keys: Any) -> Any:
        made: Any = object.__new__(cls)
        made.data = dict(zip(keys, values, strict=True))
        return made

    pytree.register_pytree_node(
        cls,
        lambda mapping: (list(mapping.values()), tuple(mapping)),
        unflatten,
        flatten_with_keys_fn=lambda mapping: ([(pytree.MappingKey(k), v) for k, v in mapping.items()], tuple(mapping)),
    )


def written_entries(
    before: tuple[Sequence[Any], dict[str, Any]], after: tuple[Sequence[Any], dict[str, Any]]
) -> tuple[Entry, ...]:
    """The entries with tensors in them that are new, or are others than before."""
    old, found = _arguments(*before), []
    for name, mapping in _arguments(*after).items():
        if isinstance(mapping, MutableMapping):
            for key, value in mapping.items():
                leaves = pytree.tree_leaves(value)
                known = pytree.tree_leaves(old[name][key]) if key in old[name] else []
                same = len(known) == len(leaves) and all(a is b for a, b in zip(known, leaves, strict=True))
                if not same and any(isinstance(leaf, torch.Tensor) for leaf in leaves):
                    found.append(Entry(name, key))
    return tuple(found)


def with_entries(result: Any, args: Sequence[Any], kwargs: dict[str, Any], entries: Sequence[Entry]) -> Any:
    """What a layer gives: its result, and with it what stands in the entries that it wrote."""
    if not entries:
        return result
    arguments = _arguments(args, kwargs)
    return result, [arguments[entry.argument][entry.key] for entry in entries]


def put_entries(given: Any, args: Sequence[Any], kwargs: dict[str, Any], entries: Sequence[Entry]) -> Any:
    """Writes the entries, and returns the result alone."""
    if not entries:
        return given
    result, values = given
    arguments = _arguments(args, kwargs)
    for entry, value in zip(entries, values, strict=True):
        arguments[entry.argument][entry.key] = value
    return result
