"""The oracle of equal units: if all units of an axis are alike, a part of them, scaled, gives what the whole gives.

The masked whole cannot tell a factor that is counted twice, since it is masked by the same factor. Soft experts are
such a case: their router divides by the sum over the kept experts, and total / kept would be multiplied besides.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from estfx.graphs import Axis, Dim, clone, promoted, run_passes, tags
from estfx.passes import specialisation
from estfx.programs.program import Variant
from estfx.programs.relative_errors import direction

__all__ = ["differing_factor", "halved"]

# what makes numbers that differ from unit to unit
UNLIKE = ("arange", "linspace", "logspace", "eye", "rand", "normal", "bernoulli", "tril_indices", "triu_indices")
Tensors = list[torch.Tensor]
NUDGE = 1e-12  # relative, of each number given; thousands of times its rounding
ILL = 1e-6  # what is changed more by such a nudge cannot be told from its rounding


def differing_factor(
    variant: Variant,
    narrowed_axes: Collection[Axis],
    inputs: Tensors,
    weights: Tensors,
    narrowed: GraphModule | None = None,
) -> float:
    """By how much, relative to the whole and the stream, the scaled part differs. An axis of unlike units is left out.

    `inputs` and `weights` are those of the variant's graph, in float64. `narrowed` is its graph with half the units of
    all these axes, if there is one already.
    """
    axes = tags.get(variant.traced.graph, tags.Axes)
    nodes = list(variant.traced.graph.graph.nodes)
    units = [axis for axis in narrowed_axes if not any(_differs_by_unit(node, axes, axis) for node in nodes)]
    if not units:
        return 0.0
    kept = halved(units)
    if narrowed is None or len(units) < len(narrowed_axes):
        narrowed = run_passes(clone(variant.traced.graph), specialisation(kept))
    graphs = [promoted(clone(graph)) for graph in (variant.traced.graph, narrowed)]
    held = _computed_weights(graphs[0], axes, [*inputs, *weights])
    first_of = _first_branches(variant.traced.graph, axes, units)
    for graph in graphs:
        _hold(graph, held)
        constants = {n.name: n for n in graph.graph.nodes if n.op == "get_attr"}
        values = {name: getattr(graph, str(node.target), None) for name, node in constants.items()}
        for name, node in constants.items():
            if isinstance(value := values[first_of.get(name, name)], torch.Tensor):
                alike = _alike(value, axes.dims.get(name, ()), units)
                graph.register_buffer(str(node.target), alike, persistent=False)
    interface = tags.get(graphs[0], tags.Interface)
    names = [interface.stream, *interface.sides, *(name for name, _ in interface.weights)]
    by_name = dict(zip(names, [*inputs, *weights], strict=True))
    given = [_alike(by_name[first_of.get(name, name)], axes.dims[name], units) for name in names]
    first = {axis: np.arange(count) for axis, count in kept.items()}
    indices = [
        torch.from_numpy(gather.dim.flat_index(first)).to(given[0].device)
        for gather in tags.get(graphs[1], tags.Indices).gathers
    ]
    want = _of_branches(graphs[0], given)
    got = _of_branches(graphs[1], [*given[: len(inputs)], *indices, *given[len(inputs) :]])
    error = _difference(want, got, given[0])
    if error > NUDGE:  # a norm of what is zero but for rounding, say, gives anything
        changed = _difference(want, _of_branches(graphs[0], [_nudged(value) for value in given]), given[0])
        if changed > min(ILL, error):
            return 0.0
    return error


def _nudged(value: torch.Tensor) -> torch.Tensor:
    """Units that were alike are no more; else statistics over them would hide how they are rounded."""
    return value * (1 + NUDGE * direction(value).sign()) if value.is_floating_point() else value


def _difference(want: Tensors, got: Tensors, stream: torch.Tensor) -> float:
    """Of the branches' values and gradients, relative to the larger of these and the stream and its gradient.

    A norm over units that are alike gives zeros but for rounding, which is small beside the stream.
    """
    least = (float(stream.abs().max()) or 1.0, 1.0)
    return max(
        float((w - g).abs().max() / w.abs().max().clamp(min=scale))
        for w, g, scale in zip(want, got, least, strict=True)
    )


def _first_branches(graph: GraphModule, axes: tags.Axes, units: Collection[Axis]) -> dict[str, str]:
    """Of weights that each of several branches has alone, if these are units, those of the first branch."""
    found = tags.get(graph, tags.SeparateHeads, tags.SeparateHeads()).found
    alike = [each for each in found if any(axis in units for axis in axes.counting(each))]
    return {name: names[0] for each in alike for names in each.weights for name in names}


def halved(axes: Collection[Axis]) -> dict[Axis, int]:
    """Half the units of each axis, as the oracles keep them."""
    return {axis: max(1, axis.size // 2) for axis in axes}


def _computed_weights(graph: GraphModule, axes: tags.Axes, given: Tensors) -> dict[str, torch.Tensor]:
    """The values of the weights that a graph computes whole, by the names of the nodes."""
    values = _Values(graph, axes.born)
    if axes.born:
        values.run(*given)
    return values.found


def _hold(graph: GraphModule, values: dict[str, torch.Tensor]) -> None:
    """Puts such values into the graph, in the place of what computes them."""
    for node in list(graph.graph.nodes):
        if node.name in values:
            graph.register_buffer(f"held_{node.name}", values[node.name], persistent=False)
            with graph.graph.inserting_before(node):
                held = graph.graph.get_attr(f"held_{node.name}")
            held.meta = dict(node.meta)
            node.replace_all_uses_with(held)
            graph.graph.erase_node(node)
            held.name = node.name  # by which its dimensions are known
    graph.recompile()


class _Values(torch.fx.Interpreter):
    """Keeps some of a graph's values when it is run."""

    def __init__(self, graph: GraphModule, names: Collection[str]) -> None:
        super().__init__(graph)
        self.names, self.found = names, dict[str, torch.Tensor]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.found[n.name] = value.detach()
        return value


def _of_branches(graph: GraphModule, given: Tensors) -> Tensors:
    """The stream that a graph gives and its gradient, less those of the stream that it is given, which it passes on."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stream = given[0].clone().requires_grad_()
        result: torch.Tensor = graph(stream.clone(), *given[1:])[0]
        along = direction(result)
        (gradient,) = torch.autograd.grad(result, stream, along)
    if result.shape != stream.shape:
        return [result.detach(), gradient]
    return [(result - stream).detach(), gradient - along]


def _differs_by_unit(node: Node, axes: tags.Axes, axis: Axis) -> bool:
    """Whether a node makes other numbers for each unit, whatever the weights are."""
    if node.op != "call_function" or not any(axis in dim.axes() for dim in axes.dims.get(node.name, ())):
        return False
    return str(node.target).removeprefix("aten.").startswith(UNLIKE)


def _alike(value: torch.Tensor, dims: tuple[Dim, ...], axes: Collection[Axis]) -> torch.Tensor:
    """The tensor, with what belongs to the first unit of each axis in the place of all."""
    first = {axis: np.zeros(axis.size, dtype=np.int64) for axis in axes}
    for position, dim in enumerate(dims):
        if any(axis in first for axis in dim.axes()):
            index = torch.from_numpy(dim.flat_index(first))
            value = value.index_select(position, index.to(value.device))
    return value
