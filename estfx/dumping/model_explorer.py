"""Graphs of a stage as a graph collection of Google's Model Explorer, its own JSON."""

from __future__ import annotations

import json
from typing import Any

from estfx.dumping.dot import edges
from estfx.dumping.records import KindRecord, record_of
from estfx.dumping.stage_graphs import StageGraphs

__all__ = ["model_explorer"]


def model_explorer(graphs: StageGraphs) -> str:
    """A graph for each kind; its branches are groups."""
    record = record_of(graphs)
    label = f"{record.model}, stage {record.stage} of {record.num_stages}"
    return json.dumps({"label": label, "graphs": [_graph(kind) for kind in record.kinds]}, indent=1) + "\n"


def _graph(kind: KindRecord) -> dict[str, Any]:
    place = {name: title for title, names in kind.graph.branches for name in names}
    incoming: dict[str, list[dict[str, str]]] = {}
    for one, other in edges(kind.graph):
        into = incoming.setdefault(other, [])
        into.append({"sourceNodeId": one, "sourceNodeOutputId": "0", "targetNodeInputId": str(len(into))})
    nodes = []
    for node in kind.graph.nodes:
        figures = {
            "type": node.type,
            "axes": node.axes,
            "source": node.source,
            "passes": ", ".join(node.passes),
            "forward FLOPs, 128 tokens": str(node.flops or ""),
            "text": node.text,
        }
        nodes.append(
            {
                "id": node.name,
                "label": node.text.partition("(")[0] if node.op == "call" else node.target or node.name,
                "namespace": place.get(node.name, f"{node.op}s"),
                "incomingEdges": incoming.get(node.name, []),
                "attrs": [{"key": key, "value": value} for key, value in figures.items() if value],
                "outputsMetadata": [{"id": "0", "attrs": [{"key": "tensor_shape", "value": node.type}]}],
            }
        )
    return {"id": kind.name, "nodes": nodes}
