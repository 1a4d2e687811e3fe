"""Operators that take a dimension apart, or put one together: it becomes a sum of its parts."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.fx import Node

from estfx.axes.algebra import Ref
from estfx.axes.walk import Arguments, Dims, Resize, Walk, resizer, rule
from estfx.graphs import describe, extent_of, sizes, tensor_of

aten = torch.ops.aten


def _is_open(size: int | torch.SymInt) -> bool:
    return not isinstance(extent_of(size)[1], int)


def _cut_anywhere(walk: Walk, node: Node, dims: Sequence[Ref], at: int) -> Dims:
    """A part whose position is only known at run time."""
    fresh = walk.fresh(tensor_of(node).shape[at])
    walk.pin(f"cut at a dynamic position at {describe(node)}", dims[at], fresh)
    return (*dims[:at], fresh, *dims[at + 1 :])


def _bounds(size: int | torch.SymInt, start: Any, end: Any) -> tuple[int, int] | None:
    """Both ends of a slice as positions, or None if one of them is only known at run time."""
    start, end = (0 if start is None else start), (size if end is None else end)
    if _is_open(size) or not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end, _ = slice(start, end).indices(int(size))
    return start, max(start, end)


@rule(aten.slice.Tensor)
def slice_(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`x[…, start:end:step]`: a cut; with a step, the step becomes the minor part of a product and stays whole."""
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    exact, step = tensor_of(a["self"]).shape[at], a["step"]
    if str(exact) == str(tensor_of(node).shape[at]):
        return dims  # the whole of it
    bounds = _bounds(exact, a["start"], a["end"])
    if bounds is None or not isinstance(step, int):
        return _cut_anywhere(walk, node, dims, at)
    (start, end), size = bounds, int(exact)
    if step == 1:
        part = walk.cut(node, dims[at], [start, end - start, size - end])[1]
    else:
        reason = f"one unit in {step} is taken at {describe(node)}"
        fits = start < step and end == size and size % step == 0
        parts = walk.algebra.split_minor(dims[at], step) if fits else None
        if parts is None:
            walk.pin(reason, dims[at], part := walk.fresh(sizes(node)[at]))
        else:
            walk.pin(reason, parts[1])
            part = parts[0]
    return (*dims[:at], part, *dims[at + 1 :])


@resizer(aten.slice.Tensor)
def resize_slice(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    dims = resize.dims(a["self"])
    dim = dims[a["dim"] % len(dims)]
    bounds = _bounds(dim.size, a["start"], a["end"])
    if not resize.changes(dim) or bounds is None:
        return {}
    start, end = bounds
    if a["step"] != 1:  # from a unit of the minor part to the end
        return {"end": dim.narrowed_size(resize.kept)}
    return {"start": dim.offset(start, resize.kept), "end": dim.offset(end, resize.kept)}


@rule(aten.narrow.default)
def narrow(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    exact, length = tensor_of(a["self"]).shape[at], a["length"]
    if _is_open(exact) or not isinstance(a["start"], int) or not isinstance(length, int):
        return _cut_anywhere(walk, node, dims, at)
    size = int(exact)
    start = a["start"] % size
    part = walk.cut(node, dims[at], [start, length, size - start - length])[1]
    return (*dims[:at], part, *dims[at + 1 :])


@resizer(aten.narrow.default)
def resize_narrow(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    dims = resize.dims(a["self"])
    dim = dims[a["dim"] % len(dims)]
    if not resize.changes(dim) or not isinstance(a["start"], int):
        return {}
    start = a["start"] % dim.size
    first, last = (dim.offset(p, resize.kept) for p in (start, start + a["length"]))
    return {"start": first, "length": last - first}


@rule(aten.select.int)
def select(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`x[…, i, …]`: one unit is cut out, and its dimension goes."""
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    exact = tensor_of(a["self"]).shape[at]
    walk.mix(node, dims[at])
    if _is_open(exact) or not isinstance(a["index"], int):
        walk.pin(f"taken at a dynamic position at {describe(node)}", dims[at])
    else:
        size = int(exact)
        index = a["index"] % size
        walk.cut(node, dims[at], [index, 1, size - index - 1])
    return (*dims[:at], *dims[at + 1 :])


@resizer(aten.select.int)
def resize_select(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    dims = resize.dims(a["self"])
    dim = dims[a["dim"] % len(dims)]
    if not resize.changes(dim) or not isinstance(a["index"], int):
        return {}
    return {"index": dim.offset(a["index"] % dim.size, resize.kept)}


@rule(aten.unbind.int)
def unbind(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    size = sizes(a["self"])[at]
    walk.mix(node, dims[at])
    walk.cut(node, dims[at], [1] * size)
    return [(*dims[:at], *dims[at + 1 :])] * size


@rule(
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
)
def split(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    parts = [part.shape[at] for part in node.meta["val"]]
    lengths = [extent_of(part)[0] for part in parts]
    if any(isinstance(part, torch.SymInt) for part in parts):
        fresh = [walk.fresh(part) for part in parts]
        walk.pin(f"cut at a dynamic position at {describe(node)}", dims[at], *fresh)
        return [(*dims[:at], ref, *dims[at + 1 :]) for ref in fresh]
    refs = walk.cut(node, dims[at], lengths)
    return [(*dims[:at], ref, *dims[at + 1 :]) for ref in refs]


@resizer(
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
)
def resize_split(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    """Whatever form the split had, its parts now get their sizes one by one."""
    dims = resize.dims(a["self"])
    at = a["dim"] % len(dims)
    if not resize.changes(dims[at]):
        return {}
    ends = list(accumulate((extent_of(part.shape[at])[0] for part in node.meta["val"]), initial=0))
    offsets = [dims[at].offset(end, resize.kept) for end in ends]
    node.target = aten.split_with_sizes.default
    return {"self": a["self"], "split_sizes": [b - a for a, b in pairwise(offsets)], "dim": at}


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(walk: Walk, node: Node, a: Arguments) -> Dims:
    """The sum of the parts along one dimension; all others unify."""
    rank = tensor_of(node).ndim
    parts = [n for n in a["tensors"] if tensor_of(n).ndim == rank]  # an empty vector may stand among them
    at = a["dim"] % rank
    dims = list(walk.of(parts[0]))
    of_heads = node.name in walk.joins_of_heads  # which are units of one axis
    for other in parts[1:]:
        for i, (x, y) in enumerate(zip(dims, walk.of(other), strict=True)):
            if i != at or of_heads:
                walk.unify(node, x, y)
    if of_heads:
        dims[at] = walk.algebra.product((walk.fresh(len(parts)), dims[at]))
    else:
        dims[at] = walk.algebra.sum(walk.of(part)[at] for part in parts)
    return tuple(dims)


@rule(aten.glu.default)
def glu(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out = x[…, :n] · σ(x[…, n:])`: both halves are one."""
    dims = walk.of(a["self"])
    at = a["dim"] % len(dims)
    half = tensor_of(node).shape[at]
    if _is_open(half):
        return _cut_anywhere(walk, node, dims, at)
    left, right = walk.cut(node, dims[at], [half, half])
    walk.unify(node, left, right)
    return (*dims[:at], left, *dims[at + 1 :])
