"""Finds the MLP neurons of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch.fx import GraphModule, Node

from estfx.axes import linear_source
from estfx.graphs import Analysis, Axis, arguments, has_tensor, tags
from estfx.passes.find_attention import coupling_note


@dataclass(frozen=True)
class FindMlp(Analysis):
    """`out = Σ_n act[n] · w2[n, :]`: an axis `n` that is summed over on the way into the stream are neurons.

    before                                      after, in the tag
        %up = linear(%x, %w1)       [b, t, n]
        %act = gelu(%up)            [b, t, n]
        %down = linear(%act, %w2)   [b, t, d]       neurons: n

    The axes of attention cores and of their values are not looked at; they are heads or stay whole. An axis with an
    obstacle (`Axes.obstacle`), and the rank of a low-rank map, such as an adapter's, stays whole, and a note says why.
    """

    needs: ClassVar = (tags.Axes, tags.Roles)
    puts: ClassVar = (tags.Roles,)

    def run(self, gm: GraphModule) -> int:
        axes, roles = tags.get(gm, tags.Axes), tags.get(gm, tags.Roles)
        taken = {axis for core in roles.cores for axis in (*core.batch, *core.values)}
        ranks = _ranks(gm, axes)
        found: list[tags.Role] = []
        notes: list[str] = []
        for axis in _closing_axes(gm, axes):
            if axis in taken or axis.size < 2:
                continue
            obstacle = axes.obstacle(axis)
            if axis in ranks and not obstacle:
                obstacle = "it is the rank of two linear maps in a row"
            if not obstacle:
                name = "neurons" if not found else f"neurons_{len(found) + 1}"
                found.append(tags.Role(name, axis, coupling_note(axes, axis)))
            elif not axis.dynamic and any(c.to_stream and axis in c.dim.axes() for c in axes.closings):
                notes.append(f"a dimension of {axis.size} that closes into the stream stays whole: {obstacle}")
        tags.put(gm, replace(roles, found=(*roles.found, *found), notes=(*roles.notes, *notes)))
        return len(found)


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
