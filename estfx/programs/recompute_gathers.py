"""Has the backward pass gather the kept rows of weights again, instead of keeping them from the forward pass.

They are as large as the kept part of all weights, and to read a weight once more is cheap; but torch's partitioner
keeps whatever a matrix product reads in both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

__all__ = ["RecomputeGathers"]

aten, prims = torch.ops.aten, torch.ops.prims
GATHERS = {aten.index_select.default, aten.index.Tensor}
CHEAP = {  # what may stand between a weight and the product that reads it
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.permute.default,
    aten.t.default,
    aten.transpose.int,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.expand.default,
    aten._to_copy.default,
    prims.convert_element_type.default,
}


class RecomputeGathers(CustomGraphPass):
    """Marks, in a graph of both passes, gathers from its inputs by its inputs, and what is made of them alone.

    `others` run before it: torch 2.11 takes one pass, and no list.
    """

    def __init__(self, others: Sequence[Callable[[Graph], None]] = ()) -> None:
        self.others = tuple(others)

    def __call__(self, graph: Graph) -> None:
        for other in self.others:
            other(graph)
        weights = {n for n in graph.nodes if n.op == "placeholder" and not n.name.startswith("tangents")}
        marked: set[Node] = set()
        for node in graph.nodes:
            reads = node.all_input_nodes
            gathers = node.target in GATHERS and weights.issuperset(reads)
            if gathers or (node.target in CHEAP and reads and marked.issuperset(reads)):
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
                marked.add(node)

    def uuid(self) -> Any:
        """By which torch knows compiled graphs again; None, if another pass has none: then none is looked up."""
        others = [other.uuid() if isinstance(other, CustomGraphPass) else None for other in self.others]
        return None if None in others else (get_hash_for_files((__file__,)), *others)
