"""Types that pytrees do not look into by themselves: dictionaries of a class of their own, and dataclasses.

Some models hand a dictionary from layer to layer, into which one writes what later ones read: shared keys and values.
What a layer finds in one are inputs of its graph. Others return dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["open_dataclasses", "open_mappings"]


def open_mappings(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Lets pytrees look into dictionaries of a class of their own; into plain ones they do."""
    for value in (*args, *kwargs.values()):
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


def open_dataclasses(tree: Any) -> None:
    """Lets pytrees look into the dataclasses in a result."""
    todo = pytree.tree_leaves(tree)
    while todo:
        value = todo.pop()
        cls = type(value)
        if dataclasses.is_dataclass(cls) and cls not in pytree.SUPPORTED_NODES:
            _register_dataclass(cls)
            todo.extend(pytree.tree_leaves(value))


def _register_dataclass(cls: type[Any]) -> None:
    names = tuple(field.name for field in dataclasses.fields(cls))

    def unflatten(values: Any, _: Any) -> Any:
        made = object.__new__(cls)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made

    pytree.register_pytree_node(
        cls,
        lambda value: ([getattr(value, name) for name in names], names),
        unflatten,
        flatten_with_keys_fn=lambda value: ([(pytree.GetAttrKey(n), getattr(value, n)) for n in names], names),
    )
