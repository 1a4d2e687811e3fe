"""Which pass made a node, and which ones changed it."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

__all__ = ["passes_of", "snapshot", "write_down"]

KEY = "estfx_passes"  # in a node's meta: names of passes, the first of which made it
Snapshot = dict[Node, tuple[Any, ...]]


def snapshot(gm: GraphModule) -> Snapshot:
    """What every node computes."""
    return {node: (node.target, node.args, node.kwargs) for node in gm.graph.nodes}


def write_down(gm: GraphModule, before: Snapshot, name: str) -> None:
    """Puts a pass's name on every node that it made or changed."""
    for node in gm.graph.nodes:
        if node not in before:
            node.meta[KEY] = (name,)
        elif before[node] != (node.target, node.args, node.kwargs) and node.op != "output":
            node.meta[KEY] = (*passes_of(node), name)


def passes_of(node: Node) -> tuple[str, ...]:
    """The passes that made or changed a node, in order; empty for one that came out of the export as it is."""
    found: tuple[str, ...] = node.meta.get(KEY, ())
    return found
