"""Finds the attention heads of a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from estfx.graphs import Analysis, Axis, Dim, Product, Sum, arguments, has_tensor, nodes_within, tags, tensor_of

aten = torch.ops.aten
FUSED = {aten.scaled_dot_product_attention.default}
SOFTMAX = {aten.softmax.int, aten._softmax.default}


@dataclass(frozen=True)
class FindAttention(Analysis):
    """`out[h] = softmax(q[h] · k[h]) · v[h]`: the axis `h` that a core runs over in parallel are its heads.

    before                                              after, in the tag
        %s = softmax(%scores, -1)   [b, kv·group, t, t]
        %o = matmul(%s, %v)         [b, kv·group, t, d]     core o: batch b, kv, group; values d
                                                            heads: kv

    A core is the fused operator, or a softmax over the last dimension whose result is contracted with values along it.
    Of its axes the KV heads are taken, so that whole groups go together; with a single KV head, the query heads. KV
    heads are those that the values have too; where values are repeated for each query head, the axis that the weights
    have oftener, since those of keys and values have it besides. An axis with an obstacle (`Axes.obstacle`) stays
    whole, and a note says why.
    """

    needs: ClassVar = (tags.Axes, tags.Interface)
    puts: ClassVar = (tags.Roles,)

    def run(self, gm: GraphModule) -> int:
        axes, interface = tags.get(gm, tags.Axes), tags.get(gm, tags.Interface)
        positions = set(_axes_of(axes.dims[interface.stream][:-1]))  # and the batch
        cores = tuple(_with_separate_heads(gm, axes, _cores(gm, axes, positions)))
        dims = [dim for name, _ in interface.weights for dim in axes.dims[name]]
        in_weights = Counter(axis for dim in dims for term in _terms(dim) for axis in term)
        found: list[tags.Role] = []
        notes: list[str] = []
        for core in cores:
            if any(role.axis in core.batch for role in found):
                continue
            candidates = sorted(core.batch, key=lambda axis: (axis not in core.shared, -in_weights[axis]))
            candidates = [axis for axis in candidates if axis.size > 1 and not axis.dynamic and axis not in positions]
            free = [axis for axis in candidates if not axes.obstacle(axis)]
            if free:
                name = "heads" if not found else f"heads_{len(found) + 1}"
                found.append(tags.Role(name, free[0], coupling_note(axes, free[0])))
            elif candidates:
                reasons = "; ".join(f"{axis.size}: {axes.obstacle(axis)}" for axis in candidates)
                notes.append(f"the heads of the attention core {core.node} stay whole ({reasons})")
            else:
                notes.append(f"the attention core {core.node} has a single head")
        tags.put(gm, tags.Roles(tuple(found), cores, tuple(notes)))
        return len(found)


def _with_separate_heads(gm: GraphModule, axes: tags.Axes, cores: Iterable[tags.Core]) -> Iterator[tags.Core]:
    """The cores; one that lies in a head of its own runs over all such heads in parallel."""
    heads: dict[str, tuple[Axis, ...]] = {}
    for found in tags.get(gm, tags.SeparateHeads, tags.SeparateHeads()).found:
        heads |= {name: axes.counting(found) for branch in found.nodes for name in branch}
    for core in cores:
        own = heads.get(core.node, ())
        yield replace(core, batch=(*own, *core.batch), shared=(*own, *core.shared))


def coupling_note(axes: tags.Axes, axis: Axis) -> str:
    where = axes.coupled.get(axis, ())
    return f"a statistic at {', '.join(where)} is taken over the kept part" if where else ""


def _axes_of(dims: Iterable[object]) -> list[Axis]:
    return list(dict.fromkeys(axis for dim in dims for axis in dim.axes()))  # type: ignore[attr-defined]


def _terms(dim: Dim) -> list[tuple[Axis, ...]]:
    """The axes of each part of a dimension: `a·(b·c + c)` has the parts `a, b, c` and `a, c`."""
    if isinstance(dim, Sum):
        return [term for each in dim.terms for term in _terms(each)]
    if isinstance(dim, Product):
        return [tuple(chain.from_iterable(terms)) for terms in product(*map(_terms, dim.factors))]
    return [(dim,)]


def _cores(gm: GraphModule, axes: tags.Axes, positions: set[Axis]) -> Iterator[tags.Core]:
    for node in gm.graph.nodes:
        if node.target in FUSED:
            out, values = axes.dims[node.name], axes.dims[arguments(node)["value"].name]
            batch = _axes_of(out[:-2])
            shared = set(_axes_of(values[:-2]))
            yield tags.Core(node.name, tuple(batch), tuple(a for a in batch if a in shared), tuple(_axes_of(out[-1:])))
        elif node.target in SOFTMAX and arguments(node)["dim"] in (-1, tensor_of(node).ndim - 1):
            yield from _core_by_hand(node, axes, positions)


def _core_by_hand(softmax: Node, axes: tags.Axes, positions: set[Axis]) -> Iterator[tags.Core]:
    weighed = set(_axes_of(axes.dims[softmax.name][-1:]))
    closings = {closing.node: closing for closing in axes.closings}
    todo, seen = list(softmax.users), {softmax}
    while todo:
        node = todo.pop()
        if node in seen or not has_tensor(node):
            continue
        seen.add(node)
        if node.name in closings and weighed.issuperset(closings[node.name].dim.axes()):
            operands = [n for n in nodes_within((node.args, node.kwargs)) if has_tensor(n)]
            left = {a for n in operands if n in seen for a in _axes_of(axes.dims[n.name])}
            right = {a for n in operands if n not in seen for a in _axes_of(axes.dims[n.name])}
            out = _axes_of(axes.dims[node.name])
            shared = tuple(a for a in out if a in left and a in right)
            groups = {a for a in left - positions if not axes.obstacle(a)}  # of queries that share keys and values
            batch = tuple(a for a in out if a in shared or a in groups)
            yield tags.Core(node.name, batch, shared, tuple(a for a in out if a in right and a not in left))
        elif node.name not in closings and weighed.intersection(_axes_of(axes.dims[node.name])):
            todo.extend(node.users)
