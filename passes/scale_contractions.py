"""Keeps the expectation of sums over fewer units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from estfx import tags
from estfx.graphs import arguments, tensor_of
from estfx.pipeline import Rewrite

aten = torch.ops.aten


@dataclass(frozen=True)
class ScaleContractions(Rewrite):
    """`Σ_{i in all} x_i = E[ total / kept · Σ_{i in kept} x_i ]`: a sum over fewer units is scaled (EST's 1/p).

    before                                        after
                                                      %mul = mul(%act, 2.0)
        %down = linear(%act, %take)                   %down = linear(%mul, %take)
    """

    needs: ClassVar = (tags.Axes, tags.Indices)

    def run(self, gm: GraphModule) -> int:
        kept = tags.get(gm, tags.Indices).kept
        nodes = {node.name: node for node in gm.graph.nodes}
        edits = 0
        for closing in tags.get(gm, tags.Axes).closings:
            factor = 1.0
            for axis in closing.dim.axes():
                factor *= axis.size / kept.get(axis, axis.size)
            if factor != 1.0:
                _scale(gm, nodes[closing.node], closing.argument, factor)
                edits += 1
        return edits


def _scale(gm: GraphModule, node: Node, argument: str, factor: float) -> None:
    name, _, item = re.fullmatch(r"(\w+)(\[(\d+)\])?", argument).groups()  # type: ignore[union-attr]
    operand: Any = arguments(node)[name]
    operand = operand[int(item)] if item else operand
    with gm.graph.inserting_before(node):
        scaled = gm.graph.call_function(aten.mul.Tensor, (operand, factor))
    scaled.meta = {"val": tensor_of(operand), "stack_trace": node.meta.get("stack_trace")}
    if item:
        replaced = [scaled if i == int(item) else n for i, n in enumerate(arguments(node)[name])]
        node.args = tuple(replaced if isinstance(arg, (list, tuple)) else arg for arg in node.args)
    else:
        position = next(i for i, a in enumerate(node.target._schema.arguments) if a.name == name)  # type: ignore[union-attr]
        if position < len(node.args):
            node.update_arg(position, scaled)
        else:
            node.update_kwarg(name, scaled)
