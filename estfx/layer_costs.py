"""What one call of a layer costs in a stage, for batches of any size.

A graph with sizes left open is run on meta tensors of the sizes asked for. A recurrence that is unrolled over the
positions has a graph for one length alone: its cost is taken at three short lengths, and the parabola through them
gives that of the length asked for. That is exact for what grows with the length (a recurrence, a convolution) and with
its square (attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import nn

from estfx.capture import default_inputs
from estfx.flops import Cost, graph_cost
from estfx.layer_names import LayerPatterns
from estfx.programs import Counts, Variant, analysed
from estfx.signature import flatten
from estfx.trace import Decoder, trace

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
    _short: list[tuple[Decoder, dict[str, Variant]]] = field(default_factory=list)  # traced at LENGTHS

    def of(self, layer: str, counts: Counts, inputs: Sequence[torch.Tensor]) -> Cost:
        """Of a call with that many units kept, on tensors such as `inputs`, which may be on the meta device."""
        program = self.decoder.layers[layer]
        shapes: Shapes = tuple(tuple(x.shape) for x in inputs)
        key = (program, counts, shapes)
        if key not in self._found:
            variant = self.variants[program]
            fits = all(
                all(want is None or want == size for want, size in zip(wanted, shape, strict=True))
                for wanted, shape in zip(variant.traced.shapes, shapes, strict=True)
            )
            cost = graph_cost(variant.narrowed(counts), list(inputs)) if fits else self._extrapolated(layer, counts)
            self._found[key] = cost
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
                decoder = trace(self.model, default_inputs(self.model, BATCH, length), layers=self.layers)
                self._short.append((decoder, {name: analysed(traced) for name, traced in decoder.traced.items()}))
        return self._short

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
