"""Which nodes of a graph of both passes are computed again: gathers from its inputs by its inputs, and no others."""

from __future__ import annotations

import torch
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from estfx.programs.recompute_gathers import RecomputeGathers

aten = torch.ops.aten


def test_gathers_of_weights_and_what_is_cheap_behind_them_are_marked() -> None:
    graph = Graph()
    weight, index, x, tangent = (
        graph.placeholder(name) for name in ("primals_1", "primals_2", "primals_3", "tangents_1")
    )
    taken = graph.call_function(aten.index_select.default, (weight, 0, index))
    scaled = graph.call_function(aten.mul.Tensor, (taken, 2.0))
    turned = graph.call_function(aten.permute.default, (scaled, [1, 0]))
    product = graph.call_function(aten.mm.default, (x, turned))
    looked_up = graph.call_function(aten.index_select.default, (product, 0, index))
    mixed = graph.call_function(aten.mul.Tensor, (taken, product))
    backward = graph.call_function(aten.index_select.default, (tangent, 0, index))
    graph.output((product, looked_up, mixed, backward))
    RecomputeGathers()(graph)
    marked = {node for node in graph.nodes if node.meta.get("recompute") is CheckpointPolicy.MUST_RECOMPUTE}
    assert marked == {taken, scaled, turned}
