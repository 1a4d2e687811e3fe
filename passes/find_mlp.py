"""Finds the MLP neurons of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch.fx import GraphModule, Node

from estfx.axes import linear_source
from estfx.graphs import Analysis, Axis, Dim, Product, Sum, arguments, has_tensor, tags
from estfx.passes.find_attention import coupling_note


@dataclass(frozen=True)
class FindMlp(Analysis):
    """`out = Σ_n act[n] · w2[n, :]`: an axis `n` that is summed over on the way into the stream are neurons.

    before                                      after, in the tag
        %up = linear(%x, %w1)       [b, t, n]
        %act = gelu(%up)            [b, t, n]
        %down = linear(%act, %w2)   [b, t, d]       neurons: n

    The axes of attention cores and of their values are not looked at; they are heads or stay whole. Of axes that are
    factors of one dimension the largest is taken: if all were, half of each would be a quarter of the neurons. An axis
    with an obstacle (`Axes.obstacle`), and the rank of a low-rank map, such as an adapter's, stays whole, and a note
    says why.
    """

    needs: ClassVar = (tags.Axes, tags.Roles)
    puts: ClassVar = (tags.Roles,)

    def run(self, gm: GraphModule) -> int:
        axes, roles = tags.get(gm, tags.Axes), tags.get(gm, tags.Roles)
        taken = {axis for core in roles.cores for axis in (*core.batch, *core.values)}
        ranks = _ranks(gm, axes)
        closing = [axis for axis in _closing_axes(gm, axes) if axis not in taken and axis.size > 1]
        obstacles = {axis: axes.obstacle(axis) for axis in closing}
        for axis in ranks.intersection(closing):
            obstacles[axis] = obstacles[axis] or "it is the rank of two linear maps in a row"
        larger: list[Axis] = []
        for axis in sorted(closing, key=lambda axis: -axis.size):
            if not obstacles[axis] and (rival := next((a for a in larger if _multiply(axes, axis, a)), None)):
                obstacles[axis] = f"it multiplies one of {rival.size}, which is narrowed in its place"
            elif not obstacles[axis]:
                larger.append(axis)
        found: list[tags.Role] = []
        notes: list[str] = []
        for axis, obstacle in obstacles.items():
            if not obstacle:
                name = "neurons" if not found else f"neurons_{len(found) + 1}"
                found.append(tags.Role(name, axis, coupling_note(axes, axis)))
            elif not axis.dynamic and any(c.to_stream and axis in c.dim.axes() for c in axes.closings):
                notes.append(f"a dimension of {axis.size} that closes into the stream stays whole: {obstacle}")
        tags.put(gm, replace(roles, found=(*roles.found, *found), notes=(*roles.notes, *notes)))
        return len(found)


def _multiply(axes: tags.Axes, one: Axis, other: Axis) -> bool:
    """Whether two axes are, or belong to, factors of a dimension that is summed over."""
    return any(_are_factors(closing.dim, one, other) for closing in axes.closings)


def _are_factors(dim: Dim, one: Axis, other: Axis) -> bool:
    if isinstance(dim, Axis):
        return False
    parts = dim.terms if isinstance(dim, Sum) else dim.factors
    places = [[i for i, part in enumerate(parts) if axis in part.axes()] for axis in (one, other)]
    if isinstance(dim, Product) and any(i != j for i in places[0] for j in places[1]):
        return True
    return any(_are_factors(part, one, other) for part in parts)


def _ranks(gm: GraphModule, axes: tags.Axes) -> set[Axis]:
    """The axes between two contractions with weights that nothing but what is linear lies between."""
    nodes = {node.name: node for node in gm.graph.nodes}
    contractions = {closing.node for closing in axes.closings} - axes.mixing
    found: set[Axis] = set()
    for closing in axes.closings:
        operand = arguments(nodes[closing.node]).get(closing.argument)
        if isinstance(operand, Node) and linear_source(operand).name in contractions:
            found.update(closing.dim.axes())
    return found


def _closing_axes(gm: GraphModule, axes: tags.Axes) -> list[Axis]:
    """The axes that contractions sum over, in the order of the graph, if they occur in a value at all."""
    order = {node.name: i for i, node in enumerate(gm.graph.nodes) if has_tensor(node)}
    closings = sorted(axes.closings, key=lambda closing: order[closing.node])
    return list(dict.fromkeys(axis for closing in closings for axis in closing.dim.axes()))
