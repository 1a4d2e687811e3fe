"""Operators that read or write at positions given by a tensor: what they look into stays whole, the rest goes along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from estfx.axes.algebra import Ref
from estfx.axes.walk import Arguments, Dims, Walk, rule
from estfx.graphs import describe, has_tensor, tensor_of

aten = torch.ops.aten


def _pin_position(walk: Walk, node: Node, *refs: Ref) -> None:
    walk.pin(f"indexed by position at {describe(node)}", *refs)


def _places(indices: Sequence[Any]) -> list[int] | None:
    """Where index tensors stand, if they stand side by side and none is a mask."""
    places = [i for i, n in enumerate(indices) if n is not None]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    masked = any(tensor_of(indices[i]).dtype in (torch.bool, torch.uint8) for i in places)
    return places if adjacent and not masked else None


@rule(aten.index.Tensor)
def index(walk: Walk, node: Node, a: Arguments) -> Dims | list[Dims]:
    """`x[:, i, j]`: the indexed dimensions stay whole, those of the positions come in."""
    places = _places(a["indices"])
    if places is None:
        return walk.pin_all(node, f"indexed by a mask, or in places apart, at {describe(node)}")
    dims, first = walk.of(a["self"]), places[0]
    rest = len(dims) - len(places)
    _pin_position(walk, node, *(dims[i] for i in places))
    shape = [walk.algebra.size(ref) for ref in walk.fresh_like(node)]
    positions = walk.align(node, [a["indices"][i] for i in places], shape[first : len(shape) - rest + first])
    return (*dims[:first], *positions, *dims[first + len(places) :])


@rule(aten.index_put.default, aten.index_put_.default)
def index_put(walk: Walk, node: Node, a: Arguments) -> Dims | list[Dims]:
    """`x[i, j] = values`: the values' last dimensions are those of what is left; places and positions stay whole."""
    places = _places(a["indices"])
    if places is None or places[0] != 0:
        return walk.pin_all(node, f"written by a mask, or in places apart, at {describe(node)}")
    dims, values = walk.of(a["self"]), walk.of(a["values"])
    rest = dims[len(places) :]
    positions = [ref for i in places for ref in walk.of(a["indices"][i])]  # each of them is written to
    _pin_position(walk, node, *dims[: len(places)], *positions, *values[: max(0, len(values) - len(rest))])
    _follow(walk, node, rest, values)
    return dims


def _follow(walk: Walk, node: Node, dims: Dims, others: Dims) -> None:
    """From the right, dimensions as long as each other are one; a 1 broadcasts."""
    for ref, other in zip(reversed(dims), reversed(others), strict=False):
        if walk.algebra.size(ref) == walk.algebra.size(other) != 1:
            walk.unify(node, ref, other)


@rule(aten.index_select.default)
def index_select(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`x[:, i]`."""
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    _pin_position(walk, node, dims[at])
    positions = walk.of(a["index"]) or (walk.fresh(1),)  # a number alone is one position
    return (*dims[:at], *positions, *dims[at + 1 :])


@rule(aten.index_add.default, aten.index_add_.default, aten.index_copy.default, aten.index_copy_.default)
def index_add(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`x[:, i] += source`: one dimension is written by position, the others are one."""
    dims, source, positions = walk.of(a["self"]), walk.of(a["source"]), walk.of(a["index"])
    at = a["dim"] % len(dims)
    for i, (ref, other) in enumerate(zip(dims, source, strict=True)):
        if i != at:
            walk.unify(node, ref, other)
    for ref in positions:
        walk.unify(node, ref, source[at])
    _pin_position(walk, node, dims[at], source[at])
    return dims


def _along(walk: Walk, node: Node, at: int, x: Dims, positions: Dims) -> None:
    """`positions` lie along dimension `at` of `x`; the others unify where they are as long."""
    for i, (ref, other) in enumerate(zip(x, positions, strict=True)):
        if i == at:
            _pin_position(walk, node, ref)
        else:
            _as_far_as(walk, node, ref, other)


def _as_far_as(walk: Walk, node: Node, ref: Ref, other: Ref) -> None:
    """One dimension, if both are as long; else a part of the longer is taken."""
    if walk.algebra.size(ref) == walk.algebra.size(other):
        walk.unify(node, ref, other)
    else:
        walk.pin(f"taken in part at {describe(node)}", ref, other)


@rule(aten.gather.default)
def gather(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[i, j] = x[i, index[i, j]]`: the indexed dimension stays whole."""
    positions = walk.of(a["index"])
    _along(walk, node, a["dim"] % max(len(positions), 1), walk.of(a["self"]), positions)
    return positions


@rule(
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter_.src,
    aten.scatter_.value,
    aten.scatter_add.default,
    aten.scatter_add_.default,
    aten.scatter_reduce.two,
)
def scatter(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`x[i, index[i, j]] = src[i, j]`: the indexed dimension stays whole."""
    dims, positions = walk.of(a["self"]), walk.of(a["index"])
    at = a["dim"] % max(len(dims), 1)
    _along(walk, node, at, dims, positions)
    _pin_position(walk, node, positions[at])
    if has_tensor(a.get("src")):
        for ref, other in zip(positions, walk.of(a["src"]), strict=True):
            _as_far_as(walk, node, ref, other)
    return dims


@rule(aten.topk.default)
def topk(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    """(values, positions): what the largest are looked for in stays whole."""
    dims = walk.of(a["self"])
    if not dims:
        return [dims] * 2
    at = a["dim"] % len(dims)
    chosen = walk.fresh(node.meta["val"][0].shape[at])
    walk.pin(f"the largest are taken at {describe(node)}", dims[at], chosen)
    return [(*dims[:at], chosen, *dims[at + 1 :])] * 2


@rule(aten.sort.default, aten.sort.stable)
def sort(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    """(values, positions)."""
    return [argsort(walk, node, a)] * 2


@rule(aten.argsort.default, aten.argsort.stable)
def argsort(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    if dims:
        walk.pin(f"sorted at {describe(node)}", dims[a["dim"]])
    return dims


@rule(aten.one_hot.default)
def one_hot(walk: Walk, node: Node, a: Arguments) -> Dims:
    """A new dimension counts the classes, and stays whole."""
    *_, size = tensor_of(node).shape
    walk.pin(f"it counts classes at {describe(node)}", classes := walk.fresh(size))
    return (*walk.of(a["self"]), classes)


@rule(aten.embedding.default)
def embedding(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[…, d] = weight[index[…], d]`."""
    weight = walk.of(a["weight"])
    _pin_position(walk, node, weight[0])
    return (*walk.of(a["indices"]), *weight[1:])
