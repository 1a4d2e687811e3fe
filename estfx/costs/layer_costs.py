"""What one call of a layer costs in a stage, for batches of any size.

A graph with sizes left open is run on meta tensors of the sizes asked for. A recurrence that is unrolled over the
positions has a graph for one length alone: its cost is taken at three short lengths, and the parabola through them
gives that of the length asked for. That is exact for what grows with the length (a recurrence, a convolution) and with
its square (attention).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import nn
from torch.fx import GraphModule

from estfx.costs.flops import Cost, graph_cost
from estfx.costs.operator_flops import node_flops
from estfx.graphs import axes_text, sort_of
from estfx.programs import Counts, Variant, analysed
from estfx.tracing import Decoder, LayerPatterns, flatten, sized_inputs, trace

__all__ = ["LayerCosts"]

BATCH, LENGTHS = 2, (7, 11, 15)  # of the graphs of recurrences
Shapes = tuple[tuple[int, ...], ...]


@dataclass
class LayerCosts:
    """Costs by layer, each worked out once."""

    model: nn.Module
    layers: LayerPatterns | None
    decoder: Decoder
    variants: Mapping[str, Variant]  # by program
    batch_size: int
    seq_len: int
    _found: dict[object, Cost] = field(default_factory=dict)
    _parts: dict[object, dict[str, int]] = field(default_factory=dict)
    _graphs: dict[tuple[str, Counts], GraphModule] = field(default_factory=dict)
    _short: list[tuple[Decoder, dict[str, Variant]]] = field(default_factory=list)  # traced at LENGTHS

    def forward_parts(self, layer: str, counts: Counts, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
        """Forward FLOPs of such a call by what is computed: heads, neurons, channels, several of them, or `other`.

        Empty where the graph has been made for another length alone.
        """
        program = self.decoder.layers[layer]
        key = ("parts", program, counts, tuple(tuple(x.shape) for x in inputs))
        if key not in self._parts:
            graph = self._narrowed(program, counts)
            flops = node_flops(graph, inputs) if self._fits(program, inputs) else {}
            found: Counter[str] = Counter()
            for node in graph.graph.nodes:
                if node.name in flops:
                    axes = [axes_text(graph, each) for each in (node, *node.all_input_nodes)]
                    found[sort_of(" ".join(axes)) or "other"] += flops[node.name]
            self._parts[key] = {part: number for part, number in found.items() if number}
        return self._parts[key]

    def _narrowed(self, program: str, counts: Counts) -> GraphModule:
        if (program, counts) not in self._graphs:
            self._graphs[program, counts] = self.variants[program].narrowed(counts)
        return self._graphs[program, counts]

    def _fits(self, program: str, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether the graph is one for inputs of these sizes."""
        return all(
            all(want is None or want == size for want, size in zip(wanted, x.shape, strict=True))
            for wanted, x in zip(self.variants[program].traced.shapes, inputs, strict=True)
        )

    def of(self, layer: str, counts: Counts, inputs: Sequence[torch.Tensor]) -> Cost:
        """Of a call with that many units kept, on tensors such as `inputs`, which may be on the meta device."""
        program = self.decoder.layers[layer]
        shapes: Shapes = tuple(tuple(x.shape) for x in inputs)
        key = (program, counts, shapes)
        if key not in self._found:
            if self._fits(program, inputs):
                self._found[key] = graph_cost(self._narrowed(program, counts), list(inputs))
            else:
                self._found[key] = self._extrapolated(layer, counts)
        return self._found[key]

    def _extrapolated(self, layer: str, counts: Counts) -> Cost:
        costs = [self._at(layer, counts, *short) for short in self._traced_short()]
        one = costs[0]

        def at(field_of: str) -> int:
            values = [Fraction(getattr(cost, field_of), BATCH) for cost in costs]
            return round(self.batch_size * _through(LENGTHS, values, self.seq_len))

        return Cost(at("flops_forward"), at("flops_backward"), one.parameters, at("activation_bytes"))

    def _traced_short(self) -> list[tuple[Decoder, dict[str, Variant]]]:
        if not self._short:
            for length in LENGTHS:
                decoder = trace(self.model, self._short_inputs(length), layers=self.layers)
                self._short.append((decoder, {name: analysed(traced) for name, traced in decoder.traced.items()}))
        return self._short

    def _short_inputs(self, length: int) -> object:
        return sized_inputs(self.model, self.decoder.example_inputs, BATCH, length)

    @staticmethod
    def _at(layer: str, counts: Counts, decoder: Decoder, variants: Mapping[str, Variant]) -> Cost:
        info = decoder.infos[layer]
        variant = variants[info.program]
        leaves, _ = flatten(info.call.args, info.call.kwargs)
        return graph_cost(variant.narrowed(counts), [leaves[i] for i in variant.traced.input_leaves])


def _through(places: Sequence[int], values: Sequence[Fraction], place: int) -> Fraction:
    """The value at `place` of the polynomial through the points (Lagrange)."""
    total = Fraction(0)
    for i, value in enumerate(values):
        for j, other in enumerate(places):
            if j != i:
                value *= Fraction(place - other, places[i] - other)
        total += value
    return total
