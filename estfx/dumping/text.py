"""Graphs of a stage as text, and as the difference to the whole layers."""

from __future__ import annotations

from estfx.dumping.stage_graphs import KindGraph, StageGraphs
from estfx.graphs import graph_diff, graph_text
from estfx.tracing import listed

__all__ = ["diff", "header", "kind_header", "text"]


def text(graphs: StageGraphs) -> str:
    """Every kind's graph, one line a node."""
    return "\n".join(
        [header(graphs), *(f"{kind_header(kind, graphs)}\n{graph_text(kind.graph)}" for kind in graphs.kinds)]
    )


def diff(graphs: StageGraphs) -> str:
    """What the stage changes in every kind's whole graph."""
    parts = [header(graphs)]
    for kind in graphs.kinds:
        names = (f"{kind.name}, whole", f"{kind.name}, stage {graphs.number}")
        found = graph_diff(kind.whole, kind.graph, names) or "the same as the whole layer"
        parts.append(f"{kind_header(kind, graphs)}\n{found}\n")
    return "\n".join(parts)


def header(graphs: StageGraphs) -> str:
    """The model and the stage, and the layers that have no graph."""
    lines = [f"# {graphs.model}, stage {graphs.number} of {graphs.num_stages}, from step {graphs.stage.start}"]
    lines += [f"# {name} runs as it is, always whole: {reason}" for name, reason in graphs.left.items()]
    return "\n".join(lines)


def kind_header(kind: KindGraph, graphs: StageGraphs) -> str:
    """A kind's layers, and what of them is kept."""
    shown = ", ".join(f"{role} {kept} of {size}" for role, (kept, size) in kind.roles.items())
    runs = f"{graphs.stage.layers:.0%} of them run" if kind.droppable else "all of them run"
    layers = f"{len(kind.layers)} layers ({listed(kind.layers)})" if len(kind.layers) > 1 else kind.layers[0]
    return f"# {kind.name}: {layers}, {runs}; {shown or 'whole'}"
