"""Keeps the expectation of sums over fewer units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from estfx.errors import VerifyError
from estfx.graphs import Axis, Dim, Product, Rewrite, Sum, arguments, describe, tags, tensor_of

aten = torch.ops.aten
Runs = list[tuple[int, float]]  # (units kept next to each other, their factor)


@dataclass(frozen=True)
class ScaleContractions(Rewrite):
    """`Σ_{i in all} x_i = E[ total / kept · Σ_{i in kept} x_i ]`: a sum over fewer units is scaled (EST's 1/p).

    before                                        after
                                                      %mul = mul(%take, 2.0)
        %down = linear(%act, %take)                   %down = linear(%act, %mul)

    Scaled is the weight, where the sum is a product with one: the factor then becomes a part of its gather, while a
    scaled activation would be kept for the backward pass. A sum over heads and neurons in one,
    `out(cat(heads, neurons))`, has a factor for each of its parts: it is split, scaled and put together again.
    """

    needs: ClassVar = (tags.Axes, tags.Indices, tags.Interface)

    def run(self, gm: GraphModule) -> int:
        kept = tags.get(gm, tags.Indices).kept
        nodes = {node.name: node for node in gm.graph.nodes}
        activations = _activations(gm)
        edits = 0
        for closing in tags.get(gm, tags.Axes).closings:
            runs = _runs(closing.dim, kept)
            if runs is None:
                raise VerifyError(f"{describe(nodes[closing.node])}: no factor is known for parts of {closing.dim}")
            if any(factor != 1.0 for _, factor in runs):
                _scale(gm, nodes[closing.node], closing, runs, activations)
                edits += 1
        return edits


# Products with a matrix: the argument that depends on the stream, the matrix, and which of its dimensions is summed.
PRODUCTS: dict[Any, tuple[str, str, int]] = {
    aten.linear.default: ("input", "weight", 1),
    aten.addmm.default: ("mat1", "mat2", 0),
    aten.mm.default: ("self", "mat2", 0),
    aten.matmul.default: ("self", "other", 0),
}


def _activations(gm: GraphModule) -> set[Node]:
    """The nodes that depend on what the layer is called with."""
    interface = tags.get(gm, tags.Interface)
    given = {interface.stream, *interface.sides}
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.name in given or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _scaled_argument(node: Node, closing: tags.Closing, activations: set[Node]) -> tuple[str, int]:
    """Which argument of a contraction is to be scaled, and along which of its dimensions."""
    argument, matrix, dim = PRODUCTS.get(node.target, ("", "", 0))
    if argument == closing.argument:
        weight = arguments(node)[matrix]
        if weight not in activations and tensor_of(weight).ndim == 2:
            return matrix, dim
    return closing.argument, closing.position


def _runs(dim: Dim, kept: Mapping[Axis, int]) -> Runs | None:
    """Along the narrowed dimension, `total / kept` of the axes that each part is made of."""
    if isinstance(dim, Axis):
        size = dim.narrowed_size(kept)
        return [(size, dim.size / size if dim in kept else 1.0)]
    parts = [_runs(part, kept) for part in (dim.terms if isinstance(dim, Sum) else dim.factors)]
    if isinstance(dim, Product):
        major, *minor = parts
        if major is None or any(runs is None or len(runs) != 1 for runs in minor):
            return None
        for ((length, factor),) in minor:  # type: ignore[misc]
            major = [(n * length, f * factor) for n, f in major]
        return major
    merged: Runs = []
    for part in parts:
        if part is None:
            return None
        for length, factor in part:
            if merged and merged[-1][1] == factor:
                length += merged.pop()[0]
            merged.append((length, factor))
    return merged


def _scale(gm: GraphModule, node: Node, closing: tags.Closing, runs: Runs, activations: set[Node]) -> None:
    argument, position_of_sum = _scaled_argument(node, closing, activations)
    name, item = tags.operand_named(argument)
    operand: Any = arguments(node)[name]
    operand = operand if item is None else operand[item]
    with gm.graph.inserting_before(node):
        scaled = _scaled(gm, operand, position_of_sum, runs, node.meta.get("stack_trace"))
    if item is not None:
        replaced = [scaled if i == item else n for i, n in enumerate(arguments(node)[name])]
        node.args = tuple(replaced if isinstance(arg, (list, tuple)) else arg for arg in node.args)
    else:
        position = next(i for i, a in enumerate(node.target._schema.arguments) if a.name == name)  # type: ignore[union-attr]
        if position < len(node.args):
            node.update_arg(position, scaled)
        else:
            node.update_kwarg(name, scaled)


def _scaled(gm: GraphModule, operand: Node, position: int, runs: Runs, trace: str | None) -> Node:
    def times(part: Node, factor: float) -> Node:
        made = gm.graph.call_function(aten.mul.Tensor, (part, factor))
        made.meta = {"val": tensor_of(part), "stack_trace": trace}
        return made

    if len(runs) == 1:
        return times(operand, runs[0][1])
    value, parts, start = tensor_of(operand), [], 0
    with value.fake_mode:  # type: ignore[attr-defined]
        for length, factor in runs:
            part = gm.graph.call_function(aten.slice.Tensor, (operand, position, start, start + length))
            part.meta = {"val": value.narrow(position, start, length), "stack_trace": trace}
            parts.append(part if factor == 1.0 else times(part, factor))
            start += length
    whole = gm.graph.call_function(aten.cat.default, (parts, position))
    whole.meta = {"val": value, "stack_trace": trace}
    return whole
