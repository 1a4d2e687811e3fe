"""Call signatures: what about a layer's arguments decides which graph it needs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.graphs import autocast_state
from estfx.tracing.layer_structure import Changes

LEAVES = {torch.Tensor, nn.Parameter, type(None), bool, int, float, str}

__all__ = ["Signature", "call_key", "constant_key", "flatten", "is_plain", "signature_of"]


@dataclass(frozen=True)
class Signature:
    """Structure of the arguments; for tensors dtype, device, rank and which sizes are 1; the rest by value."""

    spec: pytree.TreeSpec
    leaves: tuple[Hashable, ...]
    weights: tuple[torch.dtype, ...]
    autocast: Hashable
    structure: Changes = frozenset()  # what was changed in the layer since it was transformed

    def of_any(self, numbers: frozenset[int]) -> Signature:
        """The signature with any values of the leaves that are these numbers."""
        keys = (key[:1] if i in numbers and isinstance(key, tuple) else key for i, key in enumerate(self.leaves))
        return replace(self, leaves=tuple(keys))

    def __str__(self) -> str:
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, tuple) and leaf[:1] == ("tensor",)]
        return f"{len(tensors)} tensors, {len(self.leaves) - len(tensors)} constants, autocast {self.autocast}"


_specs: dict[object, pytree.TreeSpec] = {}  # one object for each structure


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of a call's arguments and their structure; for equal structures the same object.

    As `torch.utils._pytree` does it, which for arguments that are leaves or tuples of leaves takes ten times as long.
    """
    leaves: list[Any] = []
    form: list[Hashable] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        if type(value) in LEAVES:
            leaves.append(value)
            form.append(None)
        elif type(value) is tuple and all(type(each) in LEAVES for each in value):
            leaves.extend(value)
            form.append(len(value))
        else:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            return leaves, _specs.setdefault(spec, spec)
    key = tuple(form)
    found = _specs.get(key)
    if found is None:
        spec = pytree.tree_structure((args, kwargs))
        found = _specs[key] = _specs.setdefault(spec, spec)
    return leaves, found


def constant_key(value: object) -> Hashable:
    """A constant argument by value, or by identity where it has none."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return (type(value).__name__, value)
    return (type(value).__qualname__, id(value))


def tensor_key(tensor: torch.Tensor) -> Hashable:
    ones = tuple(size == 1 for size in tensor.shape)
    return ("tensor", tensor.dtype, tensor.device, ones)


def is_plain(leaf: object) -> bool:
    """Whether a leaf is a tensor or a constant; a KV cache, for one, is neither."""
    return leaf is None or isinstance(leaf, (torch.Tensor, bool, int, float, str, torch.dtype, torch.device))


def call_key(
    leaves: list[Any], spec: pytree.TreeSpec, device_type: str, weights: tuple[torch.dtype, ...], structure: Changes
) -> Hashable:
    """What decides a call's signature and whether a graph takes its sizes, quick to make; None if that is not plain."""
    key: list[Any] = [id(spec), weights, structure, autocast_state(device_type)]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            key += (leaf.dtype, leaf.device, leaf.shape)
        elif type(leaf) in LEAVES:
            key += (type(leaf), leaf)  # 1 is 1.0, and True
        else:
            return None
    return tuple(key)


def signature_of(
    leaves: list[Any],
    spec: pytree.TreeSpec,
    device_type: str,
    weights: tuple[torch.dtype, ...],
    structure: Changes = frozenset(),
    unread: frozenset[int] = frozenset(),
) -> Signature:
    """The signature of a call; of the leaves in `unread` the value does not matter."""
    keys = tuple(tensor_key(leaf) if isinstance(leaf, torch.Tensor) else constant_key(leaf) for leaf in leaves)
    signature = Signature(spec, keys, weights, autocast_state(device_type), structure)
    return signature.of_any(unread) if unread else signature
