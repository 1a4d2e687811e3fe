"""What goes into the sums over units: the inputs of closing weights, as products of all pairs of them.

A unit's output is a column of a closing weight times the unit's activations. How far a layer's result changes without
it, and which weights make up for it best, follows from the activations' Gram matrix `G = Σ x xᵀ` over all tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from estfx.errors import EstfxError
from estfx.graphs import Dim, arguments, clone, tags, without_dropout
from estfx.programs import Variant, resolve
from estfx.scoring.layer_forwards import LayerForward, layer_forwards
from estfx.tracing import Decoder, call_arguments, flatten, without_cache
from estfx.waiting import tell

__all__ = ["ClosingInputs", "closing_inputs"]

MEMORY = 2 << 30  # bytes of Gram matrices that are held at once


@dataclass
class ClosingInputs:
    """The Gram matrix of what one contraction of a layer sums over."""

    layer: str
    node: str  # of the layer's graph
    dim: Dim  # what the sum is over
    weight: str | None  # the path of the weight in the layer that is multiplied by; None: it is none
    weight_dim: int
    gram: torch.Tensor  # [inputs, inputs], float32, on the layer's device
    tokens: int = 0

    def add(self, x: torch.Tensor, position: int) -> None:
        """Takes in a batch of activations."""
        rows = x.detach().movedim(position, -1).flatten(0, -2).float()
        self.gram.addmm_(rows.T, rows)
        self.tokens += len(rows)


def closing_inputs(
    decoder: Decoder, variants: Mapping[str, Variant], batches: Iterable[Any], memory: int = MEMORY
) -> list[ClosingInputs]:
    """One for each contraction over units, of every layer, in eval mode, over all batches.

    As many layers as fit into `memory` are looked at in one pass over the batches.
    """
    found: list[ClosingInputs] = []
    groups: list[list[str]] = [[]]
    used = 0
    made = {name: _closings(name, info.call.module, variants[info.program]) for name, info in decoder.infos.items()}
    for name, each in made.items():
        size = sum(inputs.dim.size**2 * 4 for inputs, _ in each)
        if groups[-1] and used + size > memory:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    given = list(batches)
    if not given:
        raise EstfxError("no batch of calibration text is given, and scores of activations need one at least.")
    for group in groups:
        for name in group:
            for inputs, _ in made[name]:
                device = next(decoder.infos[name].call.module.parameters()).device
                inputs.gram = torch.zeros(inputs.dim.size, inputs.dim.size, device=device)
        forwards = {name: _watching(variants[decoder.infos[name].program], made[name]) for name in group if made[name]}
        with layer_forwards(decoder, forwards), torch.no_grad():
            for number, batch in enumerate(given, start=1):
                tell(f"scoring units by what goes into them: batch {number} of {len(given)}")
                args, kwargs = call_arguments(decoder.model, batch)
                decoder.model(*args, **without_cache(decoder.model, kwargs))
        found += [inputs for name in group for inputs, _ in made[name]]
    return found


def _closings(name: str, layer: nn.Module, variant: Variant) -> list[tuple[ClosingInputs, tags.Closing]]:
    graph = variant.traced.graph
    axes, nodes = variant.axes, {node.name: node for node in graph.graph.nodes}
    units = {role.axis for role in variant.roles.found}
    found = []
    for closing in axes.closings:
        if closing.to_stream and any(axis in units for axis in closing.dim.axes()):
            path, dim = _weight_of(nodes[closing.node], closing, variant)
            found.append((ClosingInputs(name, closing.node, closing.dim, path, dim, torch.zeros(0)), closing))
    return found


def _weight_of(node: Node, closing: tags.Closing, variant: Variant) -> tuple[str | None, int]:
    """The two-dimensional weight that a contraction multiplies by, and the dimension of it that is summed over."""
    paths = dict(tags.get(variant.traced.graph, tags.Interface).weights)
    for other in node.all_input_nodes:
        while other.name not in paths and len(other.all_input_nodes) == 1:  # a transpose, a cast
            (other,) = other.all_input_nodes
        dims = variant.axes.dims.get(other.name, ())
        if other.name in paths and len(dims) == 2 and closing.dim in dims:
            return paths[other.name], dims.index(closing.dim)
    return None, 0


def _watching(variant: Variant, closings: list[tuple[ClosingInputs, tags.Closing]]) -> LayerForward:
    graph = without_dropout(clone(variant.traced.graph))

    def forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, _ = flatten(args, kwargs)
        inputs = [leaves[i] for i in variant.traced.input_leaves]
        weights = [resolve(module, path) for _, path in tags.get(graph, tags.Interface).weights]
        return variant.traced.pack(_Watch(graph, closings).run(*inputs, *weights), module, args, kwargs)

    return forward


class _Watch(Interpreter):
    """Hands what is summed over to those who collect it."""

    def __init__(self, graph: GraphModule, closings: list[tuple[ClosingInputs, tags.Closing]]) -> None:
        super().__init__(graph)
        self.closings = {closing.node: (inputs, closing) for inputs, closing in closings}

    def run_node(self, n: Node) -> Any:
        if n.name in self.closings:
            inputs, closing = self.closings[n.name]
            name, item = tags.operand_named(closing.argument)
            operand = arguments(n)[name]
            operand = operand if item is None else operand[item]
            inputs.add(self.env[operand], closing.position)
        return super().run_node(n)
