"""Operators that rearrange elements and compute nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from estfx.axes.walk import Arguments, Dims, Resize, Walk, resizer, rule
from estfx.graphs import describe, sizes, tensor_of

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
TURNED: dict[object, tuple[str, str]] = {
    aten.transpose.int: ("dim0", "dim1"),
    aten.swapaxes.default: ("axis0", "axis1"),
    aten.swapdims.default: ("dim0", "dim1"),
}


@rule(*VIEWS, aten.flatten.using_ints, aten.unflatten.int)
def view(walk: Walk, node: Node, a: Arguments) -> Dims:
    """The product of the sizes is split in another way."""
    before, exact = walk.of(a["self"]), tensor_of(node).shape
    shared = 0  # leading dimensions that stay as they are
    while shared < min(len(before), len(exact)) and str(tensor_of(a["self"]).shape[shared]) == str(exact[shared]):
        shared += 1
    after = (*before[:shared], *(walk.fresh(size) for size in exact[shared:]))
    walk.regroup(node, before[shared:], after[shared:])
    return after


@resizer(*VIEWS)
def resize_view(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    name = "shape" if node.target is aten.reshape.default else "size"
    return {name: resize.sizes(node, a[name])}


@resizer(aten.unflatten.int)
def resize_unflatten(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    rank = tensor_of(a["self"]).ndim
    start = a["dim"] % rank
    old: list[Any] = [-1] * tensor_of(node).ndim
    old[start : start + len(a["sizes"])] = a["sizes"]
    return {"sizes": resize.sizes(node, old)[start : start + len(a["sizes"])]}


@rule(aten.view_as.default, aten.reshape_as.default)
def view_as(walk: Walk, node: Node, a: Arguments) -> Dims:
    """The other tensor gives the sizes."""
    after = view(walk, node, a)
    for mine, other in zip(after, walk.of(a["other"]), strict=True):
        walk.unify(node, mine, other)
    return after


@rule(aten.view_as_complex.default)
def view_as_complex(walk: Walk, node: Node, a: Arguments) -> Dims:
    """The last dimension, real and imaginary part, goes."""
    *dims, parts = walk.of(a["self"])
    walk.pin("it counts real and imaginary part", parts)
    return tuple(dims)


@rule(aten.view_as_real.default)
def view_as_real(walk: Walk, node: Node, a: Arguments) -> Dims:
    walk.pin("it counts real and imaginary part", parts := walk.fresh(2))
    return (*walk.of(a["self"]), parts)


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = list(walk.of(a["self"]))
    i, j = (a[name] for name in TURNED[node.target])
    dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


@rule(aten.permute.default)
def permute(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    return tuple(dims[i] for i in a["dims"])


@rule(aten.t.default, aten.numpy_T.default)
def reverse(walk: Walk, node: Node, a: Arguments) -> Dims:
    return walk.of(a["self"])[::-1]


@rule(aten.mT.default, aten.adjoint.default)
def swap_last(walk: Walk, node: Node, a: Arguments) -> Dims:
    *rest, i, j = walk.of(a["self"])
    return (*rest, j, i)


def _positions(value: int | Sequence[int], rank: int) -> list[int]:
    return [i % rank for i in ([value] if isinstance(value, int) else value)]


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    sources, targets = (_positions(a[name], len(dims)) for name in ("source", "destination"))
    rest = iter(d for i, d in enumerate(dims) if i not in sources)
    moved = dict(zip(targets, (dims[i] for i in sources), strict=True))
    return tuple(moved[i] if i in moved else next(rest) for i in range(len(dims)))


@rule(aten.unsqueeze.default)
def unsqueeze(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = list(walk.of(a["self"]))
    dims.insert(a["dim"] % (len(dims) + 1), walk.fresh(1))
    return tuple(dims)


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(walk: Walk, node: Node, a: Arguments) -> Dims:
    dims = walk.of(a["self"])
    gone = _squeezed(a, sizes(a["self"]))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


@resizer(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def resize_squeeze(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    """A dimension of which a single unit is kept stays."""
    before = resize.dims(a["self"])
    if not any(map(resize.changes, before)):
        return {}
    node.target = aten.squeeze.dims
    return {"self": a["self"], "dim": _squeezed(a, [dim.size for dim in before])}


def _squeezed(a: Arguments, before: Sequence[int]) -> list[int]:
    chosen = _positions(a.get("dim", range(len(before))), len(before))
    return [i for i in chosen if before[i] == 1]


@rule(aten.expand.default, aten.broadcast_to.default)
def expand(walk: Walk, node: Node, a: Arguments) -> Dims:
    """A new axis is born where a 1 becomes n."""
    return walk.align(node, [a["self"]], sizes(node))


@resizer(aten.expand.default, aten.broadcast_to.default)
def resize_expand(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    return {"size": resize.sizes(node, a["size"])}


@rule(aten.repeat.default)
def repeat(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`n` times the whole: `n · dim`."""
    dims = walk.of(a["self"])
    counts = a["repeats"]
    padded = [walk.fresh(1)] * (len(counts) - len(dims)) + list(dims)
    exact = tensor_of(node).shape
    return tuple(_times(walk, count, ref, size, True) for count, ref, size in zip(counts, padded, exact, strict=True))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(walk: Walk, node: Node, a: Arguments) -> "Dims | list[Dims]":
    """Each element `n` times: `dim · n`."""
    if a["dim"] is None:
        return walk.pin_all(node, "repeat_interleave over all elements")
    dims = list(walk.of(a["self"]))
    at = a["dim"] % len(dims)
    dims[at] = _times(walk, a["repeats"], dims[at], tensor_of(node).shape[at], False)
    return tuple(dims)


def _times(walk: Walk, count: Any, ref: int, size: Any, outer: bool) -> int:
    if isinstance(count, int) and count == 1:
        return ref
    if not isinstance(count, int):  # a count of a dynamic size: known only by its result
        walk.pin("repeated as often as the sequence is long", ref, fresh := walk.fresh(size))
        return fresh
    return walk.algebra.product([walk.fresh(count), ref] if outer else [ref, walk.fresh(count)])


@resizer(aten.repeat.default)
def resize_repeat(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    before = resize.dims(a["self"])
    pad = len(a["repeats"]) - len(before)
    counts = list(a["repeats"])
    for i, dim in enumerate(resize.dims(node)):
        if resize.changes(dim):
            old = before[i - pad].narrowed_size(resize.kept) if i >= pad else 1
            counts[i] = dim.narrowed_size(resize.kept) // old
    return {"repeats": counts}


@resizer(aten.repeat_interleave.self_int)
def resize_repeat_interleave(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    at = a["dim"] % len(resize.dims(node))
    before, after = resize.dims(a["self"])[at], resize.dims(node)[at]
    new: dict[str, Any] = {"repeats": after.narrowed_size(resize.kept) // before.narrowed_size(resize.kept)}
    if a["output_size"] is not None and resize.changes(after):
        new["output_size"] = after.narrowed_size(resize.kept)
    return new


@rule(aten.stack.default)
def stack(walk: Walk, node: Node, a: Arguments) -> Dims:
    """Dimensions of the parts unify; the new one counts the parts and stays whole, unless they are separate heads."""
    first, *others = a["tensors"]
    for other in others:
        for x, y in zip(walk.of(first), walk.of(other), strict=True):
            walk.unify(node, x, y)
    dims = list(walk.of(first))
    count = walk.fresh(len(a["tensors"]))
    if node.name not in walk.joins_of_heads:
        walk.pin("it counts stacked tensors", count)
    dims.insert(a["dim"] % (len(dims) + 1), count)
    return tuple(dims)


@rule(aten.flip.default, aten.roll.default)
def reorder(walk: Walk, node: Node, a: Arguments) -> Dims:
    """Units change places: what is turned round stays whole."""
    dims = walk.of(a["self"])
    walk.pin(f"reordered at {describe(node)}", *(dims[i] for i in a["dims"] or range(len(dims))))
    walk.mix(node)
    return dims


@rule(aten.pad.default)
def pad(walk: Walk, node: Node, a: Arguments) -> Dims:
    """What is made longer stays whole."""
    dims = list(walk.of(a["self"]))
    for back in range(1, len(a["pad"]) // 2 + 1):
        if a["pad"][2 * back - 2 : 2 * back] != [0, 0]:
            longer = walk.fresh(tensor_of(node).shape[-back])
            walk.pin(f"padded at {describe(node)}", dims[-back], longer)
            walk.mix(node, dims[-back])
            dims[-back] = longer
    return tuple(dims)
