"""Operators that multiply and sum: what is summed over closes, the rest goes into the result."""

import torch
from torch.fx import Node

from estfx.axes.algebra import Ref
from estfx.axes.walk import Arguments, Dims, Walk, rule
from estfx.graphs import sizes

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[…, o] = Σ_i input[…, i] · weight[o, i] + bias[o]`."""
    x, weight = walk.of(a["input"]), walk.of(a["weight"])
    walk.unify(node, x[-1], weight[-1])
    others = weight[:-1]
    if a["bias"] is not None and others:
        walk.unify(node, others[0], walk.of(a["bias"])[0])
    walk.close(node, "input", -1, x[-1], others)
    return (*x[:-1], *others)


def _matmul(walk: Walk, node: Node, left: str, right: str, a: Arguments, shape: tuple[int, ...]) -> Dims:
    """`out[…, m, n] = Σ_k left[…, m, k] · right[…, k, n]`; a vector has no m, or no n."""
    x, y = walk.of(a[left]), walk.of(a[right])
    inner = y[-2] if len(y) > 1 else y[-1]
    rows, columns = (x[-2:-1] if len(x) > 1 else ()), (y[-1:] if len(y) > 1 else ())
    walk.unify(node, x[-1], inner)
    own = len(rows) + len(columns)
    batch, shared = _batch(walk, node, x[:-2], y[:-2], shape[: len(shape) - own])
    if a[left] in walk.carriers and a[right] in walk.carriers:
        walk.mix(node, aligned=shared)
    if a[left] in walk.carriers or a[right] not in walk.carriers:
        walk.close(node, left, -1, x[-1], columns)
    else:
        walk.close(node, right, -2 if len(y) > 1 else -1, inner, rows)
    return (*batch, *rows, *columns)


def _batch(walk: Walk, node: Node, x: Dims, y: Dims, shape: tuple[int, ...]) -> tuple[Dims, Dims]:
    """The dimensions of the batch, and those of them that both operands have."""
    result: list[Ref] = []
    shared: list[Ref] = []
    for back in range(len(shape), 0, -1):
        refs = [d[-back] for d in (x, y) if back <= len(d) and walk.algebra.size(d[-back]) == shape[-back]]
        if len(refs) == 2:
            walk.unify(node, *refs)
            shared.append(refs[0])
        result.append(refs[0])
    return tuple(result), tuple(shared)


@rule(aten.mm.default, aten.bmm.default)
def matrix_product(walk: Walk, node: Node, a: Arguments) -> Dims:
    return _matmul(walk, node, "self", "mat2", a, sizes(node))


@rule(aten.matmul.default)
def matmul(walk: Walk, node: Node, a: Arguments) -> Dims:
    return _matmul(walk, node, "self", "other", a, sizes(node))


@rule(aten.addmm.default)
def addmm(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out = self + mat1 @ mat2`, `self` broadcast."""
    dims = _matmul(walk, node, "mat1", "mat2", a, sizes(node))
    return _added(walk, node, a["self"], dims)


@rule(aten.baddbmm.default)
def baddbmm(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out = self + batch1 @ batch2` for each of a batch, `self` broadcast."""
    dims = _matmul(walk, node, "batch1", "batch2", a, sizes(node))
    return _added(walk, node, a["self"], dims)


def _added(walk: Walk, node: Node, added: Node, dims: Dims) -> Dims:
    for ref, other in zip(reversed(dims), reversed(walk.of(added)), strict=False):
        if walk.algebra.size(other) == walk.algebra.size(ref) != 1:
            walk.unify(node, ref, other)
    return dims


@rule(aten.einsum.default)
def einsum(walk: Walk, node: Node, a: Arguments) -> "Dims | list[Dims]":
    """One letter, one dimension; a letter that the result lacks is summed over."""
    equation = a["equation"].replace(" ", "")
    if "..." in equation or "->" not in equation:
        return walk.pin_all(node, f"einsum with the equation {equation!r}, which names no result or uses an ellipsis")
    left, result = equation.split("->")
    letters: dict[str, Ref] = {}
    operands = left.split(",")
    for term, source in zip(operands, a["tensors"], strict=True):
        for letter, ref in zip(term, walk.of(source), strict=True):
            if letter in letters and walk.algebra.size(letters[letter]) != 1:
                if walk.algebra.size(ref) != 1:
                    walk.unify(node, letters[letter], ref)
            else:
                letters[letter] = ref
    carried = [set(term) for term, source in zip(operands, a["tensors"], strict=True) if source in walk.carriers]
    if len(carried) > 1:
        walk.mix(node, aligned=tuple(letters[x] for x in sorted(set(result).intersection(*carried))))
    for letter in sorted(letters.keys() - set(result)):
        holders = [i for i, term in enumerate(operands) if letter in term]
        from_stream = [i for i in holders if a["tensors"][i] in walk.carriers] or holders
        mine = set(operands[from_stream[0]])
        others = tuple(letters[other] for other in result if other not in mine)
        position = operands[from_stream[0]].index(letter)
        walk.close(node, f"tensors[{from_stream[0]}]", position, letters[letter], others)
    return tuple(letters[letter] for letter in result)
