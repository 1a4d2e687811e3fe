"""What a cut layer consists of: which rows and columns of each weight, times what, and the graph that it equals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from estfx.cutting.kept_parts import KeptParts
from estfx.errors import UnsupportedModelError
from estfx.graphs import Axis, Dim, Product, Sum, arguments, clone, nodes_within, promoted, tags, without_dropout
from estfx.programs import Variant, resolve
from estfx.tracing import Decoder, LayerCall, flatten

__all__ = ["LayerPart", "cut_tensor", "layer_parts"]

Indices = Mapping[int, np.ndarray]  # by dimension


@dataclass(frozen=True)
class LayerPart:
    """A layer of which some units stay."""

    name: str
    call: LayerCall
    variant: Variant
    graph: GraphModule  # narrowed, and without dropout
    units: Mapping[str, np.ndarray]  # kept, by role; a role that is whole is left out
    weights: Mapping[str, Indices]  # by the path of a weight in the layer, the rows and columns that stay
    factors: Mapping[str, Indices] = field(default_factory=dict)  # and what they are multiplied by
    sizes: frozenset[tuple[int, int]] = frozenset()  # that of any dimension that became narrower: before, and now
    sides: Mapping[int, Mapping[int, Callable[[torch.Tensor], torch.Tensor]]] = field(
        default_factory=dict
    )  # of arguments that have units, by their leaf and dimension, what takes the kept ones

    @property
    def path(self) -> str:
        """The module's name in the model."""
        return self.call.path

    @property
    def key(self) -> tuple[int, tuple[tuple[str, int], ...]]:
        """Equal for layers that are changed alike."""
        return id(self.variant), tuple(sorted((role, len(kept)) for role, kept in self.units.items()))

    def values(self, graph: GraphModule, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the graph gives for a call, with the weights of a layer that has all units."""
        traced = self.variant.traced
        leaves, _ = flatten(args, kwargs)
        inputs = [leaves[i] for i in traced.input_leaves]
        paths = [path for _, path in tags.get(graph, tags.Interface).weights]
        indices = [torch.from_numpy(index).to(inputs[0].device) for index in self.indices]
        weights = [resolve(layer, path).to(_as_given(resolve(layer, path), inputs[0])) for path in paths]
        return traced.pack(graph(*inputs, *indices, *weights), layer, args, kwargs)

    @property
    def indices(self) -> list[np.ndarray]:
        """Of each index input of the graph."""
        units = {role.axis: self.units[role.name] for role in self.variant.roles.found if role.name in self.units}
        return [gather.dim.flat_index(units) for gather in tags.get(self.graph, tags.Indices).gathers]

    def in_double(self) -> GraphModule:
        """The graph, computed in float64."""
        return promoted(clone(self.graph))


def _as_given(weight: torch.Tensor, stream: torch.Tensor) -> torch.dtype:
    return torch.float64 if weight.is_floating_point() and stream.dtype == torch.float64 else weight.dtype


def layer_parts(decoder: Decoder, variants: Mapping[str, Variant], kept: KeptParts) -> dict[str, LayerPart]:
    """A part for each layer that stays and of which there is a graph, by name. Layers that are alike share a graph."""
    graphs: dict[Any, GraphModule] = {}
    parts = {}
    for name in kept.layers:
        if name not in decoder.infos:
            continue
        info = decoder.infos[name]
        variant, units = variants[info.program], kept.units.get(name, {})
        counts = tuple(sorted((role, len(index)) for role, index in units.items()))
        if (info.program, counts) not in graphs:
            graphs[info.program, counts] = without_dropout(variant.narrowed(counts))
        parts[name] = _part(name, info.call, variant, graphs[info.program, counts], units, kept.scales)
    return parts


def _part(
    name: str, call: LayerCall, variant: Variant, graph: GraphModule, units: Mapping[str, np.ndarray], scales: bool
) -> LayerPart:
    by_axis = {role.axis: units[role.name] for role in variant.roles.found if role.name in units}
    indices = tags.get(graph, tags.Indices)
    if indices.of_one_unit:
        raise UnsupportedModelError(
            f"the heads of layer `{name}` are modules of their own (`{indices.of_one_unit[0][0]}`), which cannot be "
            "cut out yet. Keep all heads, and cut neurons or layers."
        )
    of_gather = {gather.placeholder: gather.dim for gather in indices.gathers}
    weights: dict[str, dict[int, np.ndarray]] = {}
    for path, dim, placeholder in indices.weights:
        weights.setdefault(path, {})[dim] = of_gather[placeholder].flat_index(by_axis)
    kept = {axis: len(index) for axis, index in by_axis.items()}
    axes = tags.get(variant.traced.graph, tags.Axes)
    sizes = {
        (dim.size, dim.narrowed_size(kept))
        for dims in axes.dims.values()
        for dim in dims
        if any(axis in kept for axis in dim.axes()) and not any(axis.dynamic for axis in dim.axes())
    }
    factors = _factors(name, variant, by_axis) if scales else {}
    sides = _sides(variant, by_axis)
    return LayerPart(name, call, variant, graph, dict(units), weights, factors, frozenset(sizes), sides)


def _sides(
    variant: Variant, units: Mapping[Axis, np.ndarray]
) -> dict[int, dict[int, Callable[[torch.Tensor], torch.Tensor]]]:
    """Arguments beside the stream that have a dimension of units, such as a bias of each head by position."""
    traced, axes = variant.traced, tags.get(variant.traced.graph, tags.Axes)
    names = tags.get(traced.graph, tags.Interface).sides
    found: dict[int, dict[int, Callable[[torch.Tensor], torch.Tensor]]] = {}
    for leaf, name in zip(traced.input_leaves[1:], names, strict=True):
        for position, dim in enumerate(axes.dims[name]):
            if any(axis in units for axis in dim.axes()):
                found.setdefault(leaf, {})[position] = partial(_taken, position=position, dim=dim, units=units)
    return found


def _taken(value: torch.Tensor, position: int, dim: Dim, units: Mapping[Axis, np.ndarray]) -> torch.Tensor:
    """The kept units of an argument. The batch may be a part of the same dimension, before them."""
    factors = list(dim.factors) if isinstance(dim, Product) else [dim]
    batch = [factor for factor in factors if any(axis.dynamic for axis in factor.axes())]
    own = [factor for factor in factors if factor not in batch]
    fixed = own[0] if len(own) == 1 else Product(tuple(own))
    index = torch.from_numpy(fixed.flat_index(units)).to(value.device)
    if not batch:
        return value.index_select(position, index)
    split: torch.Tensor = value.unflatten(position, (-1, fixed.size))
    return split.index_select(position + 1, index).flatten(position, position + 1)


def cut_tensor(tensor: torch.Tensor, kept: Indices, factors: Indices | None = None) -> torch.Tensor:
    """The kept rows and columns, multiplied by their factors; storage of its own."""
    with torch.no_grad():
        value = tensor.detach()
        for dim, index in kept.items():
            value = value.index_select(dim, torch.from_numpy(index).to(value.device))
        for dim, factor in (factors or {}).items():
            shape = [1] * value.ndim
            shape[dim] = -1
            value = (value * torch.from_numpy(factor).to(value.device).reshape(shape)).to(tensor.dtype)
        return value.clone() if value.data_ptr() == tensor.data_ptr() else value


# -- total / kept ----------------------------------------------------------------------------------------------------


def _factors(name: str, variant: Variant, units: Mapping[Axis, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """For each sum over kept units, what the weight that it is a product with is multiplied by."""
    graph = variant.traced.graph
    axes, nodes = tags.get(graph, tags.Axes), {node.name: node for node in graph.graph.nodes}
    paths = dict(tags.get(graph, tags.Interface).weights)
    found: dict[str, dict[int, np.ndarray]] = {}
    for closing in axes.closings:
        summed = [axis for axis in closing.dim.axes() if axis in units]
        if not summed:
            continue
        weight = next(
            (
                each
                for each in _ancestors(nodes[closing.node], closing.argument)
                if each.name in paths and any(axis in summed for dim in axes.dims[each.name] for axis in dim.axes())
            ),
            None,
        )
        if weight is None:
            raise UnsupportedModelError(
                f"layer `{name}`: what the sum over its kept units is multiplied by (total / kept) can go into no "
                "weight. Cut with the units alone, subnetwork.units, which are not scaled."
            )
        for position, dim in enumerate(axes.dims[weight.name]):
            own = {axis: units[axis] for axis in dim.axes() if axis in summed}
            if own:
                index = dim.flat_index({axis: units[axis] for axis in dim.axes() if axis in units})
                found.setdefault(paths[weight.name], {})[position] = _factor_along(dim, own)[index]
    return found


def _ancestors(node: Node, argument: str) -> Iterator[Node]:
    """What leads to a contraction by its other operands than that one, the nearest first."""
    name, item = tags.operand_named(argument)
    todo: list[Node] = []
    for key, value in arguments(node).items():
        if key != name:
            todo.extend(nodes_within(value))
        elif item is not None:
            todo.extend(each for i, each in enumerate(value) if i != item)
    seen = set(todo)
    for each in todo:  # it grows meanwhile
        yield each
        todo.extend(source for source in each.all_input_nodes if source not in seen)
        seen.update(each.all_input_nodes)


def _factor_along(dim: Dim, units: Mapping[Axis, np.ndarray]) -> np.ndarray:
    """`total / kept` along the whole of a dimension, of the axes that are summed over."""
    if isinstance(dim, Axis):
        return np.full(dim.size, dim.size / len(units[dim]) if dim in units else 1.0)
    if isinstance(dim, Sum):
        return np.concatenate([_factor_along(term, units) for term in dim.terms])
    return reduce(np.multiply.outer, [_factor_along(factor, units) for factor in dim.factors]).reshape(-1)
