"""Graphs of a stage as one HTML page, which needs nothing but itself."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from estfx.costs import LENGTH
from estfx.dumping.records import GraphRecord, KindRecord, NodeRecord, record_of
from estfx.dumping.stage_graphs import StageGraphs
from estfx.graphs import sort_of

__all__ = ["page"]


def page(graphs: StageGraphs) -> str:
    """The decoder as an outline: outer graph, layers, branches, nodes. A part is drawn when it is unfolded."""
    record = record_of(graphs)
    data = {
        "kinds": [_kind(kind) for kind in record.kinds],
        "outer": _outer(record.outer, record.kinds, list(record.left)),
        "left": record.left,
        "keepLayers": record.keep_layers,
        "length": LENGTH,
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("estfx.dumping").joinpath("page.html.jinja").read_text(encoding="utf-8"))
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return template.render(dump=record, data=Markup(embedded))


def _kind(kind: KindRecord) -> dict[str, Any]:
    nodes = {node.name: _node(node) for node in kind.graph.nodes}
    inputs = [node.name for node in kind.graph.nodes if node.op in ("input", "weight")]
    return {
        "name": kind.name,
        "layers": kind.layers,
        "roles": kind.roles,
        "droppable": kind.droppable,
        "notes": [*kind.notes, *([f"cannot be skipped: {kind.reason}"] if not kind.droppable else [])],
        "parts": [
            {"title": title, "nodes": [nodes[name] for name in names]}
            for title, names in [("inputs and weights", inputs), *kind.graph.branches]
        ],
        "flops": sum(node.flops for node in kind.graph.nodes),
    }


def _node(node: NodeRecord) -> list[Any]:
    passes = ", ".join(node.passes)
    return [node.name, node.text, node.type, node.axes, node.source, passes, node.flops, sort_of(node.axes)]


def _outer(outer: GraphRecord | None, kinds: list[KindRecord], left: list[str]) -> list[dict[str, Any]]:
    """The layers in order, and between them what the model does around them."""
    program = {layer: number for number, kind in enumerate(kinds) for layer in kind.layers}
    if outer is None:
        return [{"layer": layer, "kind": number} for layer, number in program.items()] + [{"layer": n} for n in left]
    calls: dict[str, int] = {}
    parts: list[dict[str, Any]] = []
    for node in outer.nodes:
        if node.op == "layer":
            calls[node.target] = calls.get(node.target, 0) + 1
            layer = node.target if calls[node.target] == 1 else f"{node.target}#{calls[node.target]}"
            parts.append({"layer": layer, "kind": program[layer]} if layer in program else {"layer": layer})
        elif node.op not in ("input", "weight"):
            if not parts or "nodes" not in parts[-1]:
                parts.append({"nodes": []})
            parts[-1]["nodes"].append(_node(node))
    return parts
