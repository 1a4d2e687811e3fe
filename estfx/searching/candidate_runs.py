"""Runs a model as any of its candidates. Those of one width run through the same program, with other indices."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from estfx.costs import node_flops
from estfx.graphs import tags, without_dropout
from estfx.programs import Compiler, Variant, numbers_at_work, resolve
from estfx.scoring import LayerForward, layer_forwards, loss_of, passing
from estfx.searching.candidates import Candidate
from estfx.tracing import Decoder, flatten

__all__ = ["CandidateRuns", "Costs"]

Costs = Mapping[str, float]  # of the layers: parameters, flops, seconds
Counts = tuple[tuple[str, int], ...]
TIMES = 5  # of which the median is taken


@dataclass
class CandidateRuns:
    """The losses and the costs of candidates."""

    decoder: Decoder
    variants: Mapping[str, Variant]
    batches: Sequence[Any]
    compiler: Compiler | None = None
    _graphs: dict[tuple[str, Counts], GraphModule] = field(default_factory=dict)
    _programs: dict[tuple[str, Counts], Any] = field(default_factory=dict)
    _costs: dict[tuple[str, Counts, str], float] = field(default_factory=dict)
    _graphs_before: int = field(default_factory=lambda: counters["stats"]["unique_graphs"])

    @property
    def programs(self) -> int:
        """How many ran so far."""
        return len(self._programs)

    @property
    def compilations(self) -> int:
        """How many there were so far."""
        return int(counters["stats"]["unique_graphs"] - self._graphs_before) if self.compiler is not None else 0

    def loss(self, candidate: Candidate | None) -> float:
        """The mean loss over the batches, each with the weight of its size; of the whole for None."""
        forwards = {} if candidate is None else self._forwards(candidate)
        total, weight = 0.0, 0
        with layer_forwards(self.decoder, forwards), torch.no_grad():
            for batch in self.batches:
                size = _size(batch)
                total += float(loss_of(self.decoder.model, batch)) * size
                weight += size
        return total / weight

    def cost(self, candidate: Candidate | None, kind: str) -> float:
        """What the layers of a candidate cost, or those of the whole for None."""
        names = [name for name in self.decoder.infos if candidate is None or name not in candidate.skipped]
        return sum(self._cost(name, self._counts(name, candidate), kind) for name in names)

    def _counts(self, name: str, candidate: Candidate | None) -> Counts:
        kept = candidate.counts(name) if candidate is not None else {}
        sizes = {role.name: role.axis.size for role in self._variant(name).roles.found}
        return tuple(sorted((role, number) for role, number in kept.items() if number < sizes[role]))

    def _variant(self, name: str) -> Variant:
        return self.variants[self.decoder.infos[name].program]

    def _graph(self, name: str, counts: Counts) -> GraphModule:
        key = (self.decoder.infos[name].program, counts)
        if key not in self._graphs:
            self._graphs[key] = without_dropout(self._variant(name).narrowed(counts))
        return self._graphs[key]

    def _program(self, name: str, counts: Counts) -> Any:
        key = (self.decoder.infos[name].program, counts)
        if key not in self._programs:
            graph = self._graph(name, counts)
            self._programs[key] = graph if self.compiler is None else self.compiler.program(graph)
        return self._programs[key]

    def _cost(self, name: str, counts: Counts, kind: str) -> float:
        key = (self.decoder.infos[name].program, counts, kind)
        if key not in self._costs:
            graph = self._graph(name, counts)
            if kind == "parameters":
                self._costs[key] = float(sum(numbers_at_work(graph).values()))
            elif kind == "flops":
                self._costs[key] = float(sum(node_flops(graph, self._inputs(name)).values()))
            else:
                self._costs[key] = self._seconds(name, counts)
        return self._costs[key]

    def _inputs(self, name: str) -> list[Any]:
        """Those of the layer's graph, on the first batch."""
        call = self.decoder.infos[name].call
        leaves, _ = flatten(call.args, call.kwargs)
        return [leaves[i] for i in self._variant(name).traced.input_leaves]

    def _seconds(self, name: str, counts: Counts) -> float:
        graph, module = self._graph(name, counts), self.decoder.infos[name].call.module
        inputs = self._inputs(name)
        first = {role: tuple(range(number)) for role, number in counts}
        given = [*inputs, *self._indices(name, graph, first), *_weights(graph, module)]
        program, took = self._program(name, counts), []
        with torch.no_grad():
            for _ in range(TIMES + 1):
                begun = time.perf_counter()
                program(*given)
                if inputs[0].is_cuda:
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - begun)
        return sorted(took[1:])[TIMES // 2]

    def _indices(self, name: str, graph: GraphModule, units: Mapping[str, Sequence[int]]) -> list[torch.Tensor]:
        axes = {role.axis: units[role.name] for role in self._variant(name).roles.found if role.name in units}
        kept = {axis: np.asarray(each, dtype=np.int64) for axis, each in axes.items()}
        device = self._inputs(name)[0].device
        gathers = tags.get(graph, tags.Indices, tags.Indices()).gathers
        return [torch.from_numpy(np.asarray(gather.dim.flat_index(kept))).to(device) for gather in gathers]

    def _forwards(self, candidate: Candidate) -> dict[str, LayerForward]:
        found = {}
        for name in self.decoder.infos:
            if name in candidate.skipped:
                found[name] = passing(self._variant(name))
            elif counts := self._counts(name, candidate):
                units = {role: candidate.units[name][role] for role, _ in counts}
                found[name] = self._forward(name, counts, units)
        return found

    def _forward(self, name: str, counts: Counts, units: Mapping[str, Sequence[int]]) -> LayerForward:
        graph, program, traced = self._graph(name, counts), self._program(name, counts), self._variant(name).traced
        indices = self._indices(name, graph, units)

        def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            leaves, _ = flatten(args, kwargs)
            inputs = [leaves[i] for i in traced.input_leaves]
            return traced.pack(program(*inputs, *indices, *_weights(graph, module)), module, args, kwargs)

        return call


def _weights(graph: GraphModule, module: nn.Module) -> list[torch.Tensor]:
    return [resolve(module, path) for _, path in tags.get(graph, tags.Interface).weights]


def _size(batch: Any) -> int:
    """Sequences of a batch."""
    leaves = torch.utils._pytree.tree_leaves(batch)
    return next((len(x) for x in leaves if isinstance(x, torch.Tensor) and x.ndim), 1)
