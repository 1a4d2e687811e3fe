"""Which numbers of a layer's weights belong to each of its units, and what they come to unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from estfx.graphs import Axis, Dim, tags
from estfx.programs import Variant
from estfx.runtime.sharded_tensors import has_local_part, local_part, placed

__all__ = ["Sums", "UnitWeight", "unit_positions", "unit_weights"]


@dataclass(frozen=True)
class UnitWeight:
    """A dimension of a weight that is made of units: the positions along it that belong to each."""

    path: str  # of the weight, in the layer
    dim: int
    role: str
    positions_UP: torch.Tensor  # int64, on the CPU
    closes: bool = False  # the sum over the units is a product with this weight
    _on: dict[torch.device, torch.Tensor] = field(default_factory=dict, compare=False)

    def positions(self, device: torch.device) -> torch.Tensor:
        """`positions_UP` on a device."""
        if device not in self._on:
            self._on[device] = self.positions_UP.to(device)
        return self._on[device]


def unit_weights(variant: Variant) -> list[UnitWeight]:
    """The weights of a kind's graph that have units, for every role that may be narrowed."""
    interface = tags.get(variant.traced.graph, tags.Interface)
    closing = {role.name: _closing_weights(variant, role.axis) for role in variant.roles.found}
    found = []
    for placeholder, path in interface.weights:
        for dim, made_of in enumerate(variant.axes.dims[placeholder]):
            for role in variant.roles.found:
                if role.axis in made_of.axes():
                    positions = unit_positions(made_of, role.axis)
                    found.append(UnitWeight(path, dim, role.name, positions, placeholder in closing[role.name]))
    return found


def _closing_weights(variant: Variant, axis: Axis) -> set[str]:
    """The placeholders of the weights with which the sum over an axis is a product."""
    nodes = {node.name: node for node in variant.traced.graph.graph.nodes}
    weights = {placeholder for placeholder, _ in tags.get(variant.traced.graph, tags.Interface).weights}
    found = set()
    for closing in variant.axes.closings:
        if axis in closing.dim.axes() and closing.to_stream:
            for node in nodes[closing.node].all_input_nodes:
                while node.name not in weights and len(node.all_input_nodes) == 1:  # a view, a transpose, a cast
                    (node,) = node.all_input_nodes
                if node.name in weights and any(axis in dim.axes() for dim in variant.axes.dims[node.name]):
                    found.add(node.name)
    return found


def unit_positions(dim: Dim, axis: Axis) -> torch.Tensor:
    """The positions along a dimension that belong to one unit of an axis alone, for each unit."""
    all_UP = dim.flat_index({axis: np.arange(axis.size, dtype=np.int64)[:, None]})
    shared = np.bincount(all_UP.ravel(), minlength=dim.size) > 1  # by all units: terms without the axis
    own = ~shared[all_UP[0]]
    return torch.from_numpy(np.ascontiguousarray(all_UP[:, own]))


class Sums:
    """Sums of magnitudes over the numbers of each unit, laid out one after the other; of shards, over all of them."""

    def __init__(self, layout: Mapping[tuple[str, str], int], device: torch.device, signed: bool = False) -> None:
        self._device, self._signed = device, signed
        self._whole: dict[tuple[str, str], list[torch.Tensor]] = {key: [] for key in layout}
        self._sizes = layout
        self._parts: dict[object, dict[tuple[str, str], list[torch.Tensor]]] = {}  # by the mesh to be summed over

    def add(self, key: tuple[str, str], weight: UnitWeight, *factors: torch.Tensor) -> None:
        """Adds |the product of the factors|, tensors of the weight's shape, to the units of `key`; signed, itself."""
        mesh, along, length = placed(factors[0], weight.dim)
        product = _local(factors[0])
        for factor in factors[1:]:
            product = product * _local(factor)
        others = [dim for dim in range(product.dim()) if dim != weight.dim]
        if self._signed:
            each = product.float().sum(dim=others) if others else product.float()
        else:
            each = torch.linalg.vector_norm(product.float(), 1, dim=others) if others else product.float().abs()
        if along is not None:  # a shard of the dimension itself
            padded = each.new_zeros(length)
            padded[along : along + len(each)] = each
            each = padded
        sums_U = each[weight.positions(each.device)].sum(dim=1).to(self._device)
        where = self._whole if mesh is None else self._parts.setdefault(mesh, {key: [] for key in self._whole})
        where[key].append(sums_U)

    def total(self) -> torch.Tensor:
        """All units' sums, `[units]`. With shards, every rank must call it."""
        total = self._flat(self._whole)
        for mesh, parts in self._parts.items():
            flat = self._flat(parts)
            torch.distributed.all_reduce(flat, group=mesh)
            total = total + flat
        return total

    def _flat(self, sums: dict[tuple[str, str], list[torch.Tensor]]) -> torch.Tensor:
        each = [
            torch.stack(own).sum(dim=0) if own else torch.zeros(self._sizes[key], device=self._device)
            for key, own in sums.items()
        ]
        return torch.cat(each) if each else torch.zeros(0, device=self._device)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part on this rank, or all of a tensor whose shards are not along one dimension."""
    if isinstance(tensor, DTensor) and not has_local_part(tensor):
        return tensor.full_tensor()
    return local_part(tensor)
