"""Operators that take a statistic over dimensions: those are coupled, the others go into the result."""

from typing import Any

import torch
from torch.fx import Node

from estfx.axes.rule_tables import STATISTICS
from estfx.axes.walk import RULES, Arguments, Dims, Resize, Walk, resizer, rule
from estfx.graphs import Product, describe

aten = torch.ops.aten


def _positions(dim: Any, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    return {i % rank for i in ([dim] if isinstance(dim, int) else dim)}


def _reduced(walk: Walk, node: Node, a: Arguments, dim: Any) -> Dims:
    dims = walk.of(a["self"])
    gone = _positions(dim, len(dims))
    walk.couple(node, *(dims[i] for i in gone))
    if a.get("keepdim"):
        return tuple(walk.fresh(1) if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


@rule(
    aten.mean.dim,
    aten.var.dim,
    aten.var.correction,
    aten.std.dim,
    aten.std.correction,
    aten.amax.default,
    aten.amin.default,
    aten.logsumexp.default,
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
)
def statistic(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[i] = statistic(x[i, :])`."""
    return _reduced(walk, node, a, a["dim"])


@rule(aten.mean.default, aten.sum.default, aten.var.default, aten.max.default, aten.min.default)
def statistic_of_all(walk: Walk, node: Node, a: Arguments) -> "Dims | list[Dims]":
    return walk.pin_all(node, f"all elements are reduced to one at {describe(node)}")


@rule(aten.sum.dim_IntList, aten.prod.dim_int)
def sum_(walk: Walk, node: Node, a: Arguments) -> Dims:
    """A sum or a product grows with the number of its terms: what it is taken over stays whole."""
    dims = walk.of(a["self"])
    gone = _positions(a["dim"], len(dims))
    walk.pin(f"summed over at {describe(node)}", *(dims[i] for i in gone))
    return _reduced(walk, node, a, a["dim"])


@rule(aten.max.dim, aten.min.dim)
def extreme(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    """(value, position); a position means nothing in a narrower dimension."""
    dims = walk.of(a["self"])
    walk.pin(f"a position is taken at {describe(node)}", *(dims[i] for i in _positions(a["dim"], len(dims))))
    return [_reduced(walk, node, a, a["dim"])] * 2


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
def softmax(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[i, :] = softmax(x[i, :])`."""
    dims = walk.of(a["self"])
    walk.couple(node, dims[a["dim"]])
    return dims


@rule(aten.cumsum.default, aten.cumprod.default)
def cumsum(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    walk.pin(f"summed up in order at {describe(node)}", dims[a["dim"]])
    walk.mix(node)
    return dims


@rule(aten.layer_norm.default, aten.rms_norm.default)
def norm(walk: Walk, node: Node, a: Arguments) -> Dims:
    """Normalised over the last dimensions, then scaled by a weight of their shape."""
    dims = walk.of(a["input"])
    count = len(a["normalized_shape"])
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for x, y in zip(dims[-count:], walk.of(a[name]), strict=True):
                walk.unify(node, x, y)
    walk.couple(node, *dims[-count:])
    return dims


@resizer(aten.layer_norm.default, aten.rms_norm.default)
def resize_norm(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    last = resize.dims(node)[-len(a["normalized_shape"]) :]
    return {"normalized_shape": [dim.narrowed_size(resize.kept) for dim in last]}


@rule(aten.group_norm.default)
def group_norm(walk: Walk, node: Node, a: Arguments) -> "Dims | list[Dims]":
    """The second dimension is `groups · rest`; each group is normalised by itself."""
    dims = walk.of(a["input"])
    parts = walk.algebra.split_minor(dims[1], walk.algebra.size(dims[1]) // a["num_groups"])
    if parts is None:
        return walk.pin_all(node, f"groups do not divide the channels at {describe(node)}")
    walk.couple(node, parts[1], *dims[2:])
    for name in ("weight", "bias"):
        if a[name] is not None:
            walk.unify(node, dims[1], walk.of(a[name])[0])
    return dims


@resizer(aten.group_norm.default)
def resize_group_norm(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    dim = resize.dims(node)[1]
    if not resize.changes(dim):
        return {}
    whole = groups = 1
    for factor in dim.factors if isinstance(dim, Product) else (dim,):  # the groups are the first of them
        if whole == a["num_groups"]:
            break
        whole, groups = whole * factor.size, groups * factor.narrowed_size(resize.kept)
    return {"num_groups": groups}


STATISTICS.update(overload for overload, function in RULES.items() if function.__module__ == __name__)
