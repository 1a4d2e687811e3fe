"""Finds the channels of recurrent and state-space mixers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from estfx.graphs import Analysis, Axis, Dim, Sum, nodes_within, tags
from estfx.passes.find_attention import coupling_note


@dataclass(frozen=True)
class FindChannels(Analysis):
    """`out = Σ_c scan(x[c]) · w[c, :]`: an axis `c` that goes side by side through what mixes positions are channels.

    before                                          after, in the tag
        %c = conv1d(%u, %filter)    [b, h·d, t]
        %s = matmul(%state, %c)     [b, h, d, t]    h and d go through what mixes positions
        %o = linear(%s, %w)         [b, t, hidden]  channels: h, the major one of h · d

    What mixes positions is a convolution along them, a cumulative sum, a product of two values that both come from the
    stream, or what takes one position out. Of the axes that a sum into the stream runs over, the major one that has no
    obstacle is taken, and the others stay whole, as the head sizes of attention do. Contractions with weights inside of
    the mixer (those that make a step size from the channels, say) may sum over it too: they are scaled likewise.
    """

    needs: ClassVar = (tags.Axes, tags.Roles, tags.Interface)
    puts: ClassVar = (tags.Roles,)

    def run(self, gm: GraphModule) -> int:
        axes, roles = tags.get(gm, tags.Axes), tags.get(gm, tags.Roles)
        taken = {axis for core in roles.cores for axis in (*core.batch, *core.values)}
        mixed = _mixed(gm, axes)
        stream = {axis for dim in axes.dims[tags.get(gm, tags.Interface).stream] for axis in dim.axes()}
        found: list[tags.Role] = []
        cores: list[tags.Core] = []
        notes: list[str] = []
        for closing, term in _terms(axes):
            candidates = [a for a in dict.fromkeys(term.axes()) if a in mixed and a.size > 1 and not a.dynamic]
            candidates = [axis for axis in candidates if axis not in taken and axis not in stream]
            if not candidates:
                continue
            taken.update(candidates)
            free = [axis for axis in candidates if not axes.obstacle(axis, inner=True)]
            if free:
                name = "channels" if not found else f"channels_{len(found) + 1}"
                found.append(tags.Role(name, free[0], _note(axes, free[0])))
            else:
                reasons = "; ".join(f"{axis.size}: {axes.obstacle(axis, inner=True)}" for axis in candidates)
                notes.append(f"the channels that close at {closing.node} stay whole ({reasons})")
            batch = tuple(free[:1])
            cores.append(tags.Core(closing.node, batch, batch, tuple(a for a in candidates if a not in batch)))
        tags.put(
            gm,
            tags.Roles((*roles.found, *found), (*roles.cores, *cores), (*roles.notes, *notes)),
        )
        return len(found)


def _mixed(gm: GraphModule, axes: tags.Axes) -> set[Axis]:
    """The axes that go through an operator that mixes positions."""
    found: set[Axis] = set()
    for node in gm.graph.nodes:
        if node.name in axes.mixing:
            names = [node.name, *(source.name for source in nodes_within((node.args, node.kwargs)))]
            found.update(axis for name in names for dim in axes.dims.get(name, ()) for axis in dim.axes())
    return found


def _terms(axes: tags.Axes) -> Iterator[tuple[tags.Closing, Dim]]:
    """What contractions into the stream sum over, part by part."""
    for closing in axes.closings:
        if closing.to_stream:
            for term in closing.dim.terms if isinstance(closing.dim, Sum) else (closing.dim,):
                yield closing, term


def _note(axes: tags.Axes, axis: Axis) -> str:
    inner = [c.node for c in axes.closings if axis in c.dim.axes() and not c.to_stream]
    scaled = f"the sum over them at {', '.join(inner)}, inside of the mixer, is scaled too" if inner else ""
    return "; ".join(filter(None, (coupling_note(axes, axis), scaled)))
