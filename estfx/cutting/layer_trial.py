"""The proof of a cut layer: in float64, what its narrowed graph says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.cutting.layer_parts import LayerPart
from estfx.cutting.masked_whole import leaves_of
from estfx.graphs import InDouble
from estfx.tracing import flatten, unsharded

__all__ = ["LayerTrial"]

TOLERANCE = 1e-6  # relative to what the layer adds


class LayerTrial:
    """A layer's example call in float64, and what its narrowed graph makes of it."""

    def __init__(self, model: nn.Module, part: LayerPart) -> None:
        call = part.call
        self._given = pytree.tree_map_only(torch.Tensor, _in_double, (call.args, call.kwargs))
        self._base = flatten(*self._given)[0][call.stream_leaf]
        with torch.no_grad(), unsharded(model, call.path):
            whole = copy.deepcopy(call.module).double().eval()
            self._want = leaves_of(part.values(part.in_double(), whole, *self._copied()))
        leaves, spec = flatten(*self._given)
        for leaf, by_dimension in part.sides.items():
            for taken in by_dimension.values():
                leaves[leaf] = taken(leaves[leaf])
        self._given = pytree.tree_unflatten(leaves, spec)

    def _copied(self) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.clone, self._given)

    def run(self, layer: nn.Module) -> list[Any]:
        """What a cut layer gives."""
        args, kwargs = self._copied()
        layer.eval()
        with InDouble():  # type: ignore[no-untyped-call]
            return leaves_of(layer(*args, **kwargs))

    def fits(self, got: list[Any]) -> bool:
        """Whether what the layer adds to its stream is what the graph adds, and all else that the model reads of it."""
        if len(got) != len(self._want):
            return False
        for want, found in zip(self._want, got, strict=True):
            if not isinstance(want, torch.Tensor) or not want.is_floating_point():
                continue  # nothing reads it
            if not isinstance(found, torch.Tensor) or found.shape != want.shape:
                return False
            scale = (want - self._base).abs().max() if want.shape == self._base.shape else want.abs().max()
            if not float((want - found).abs().max()) <= TOLERANCE * float(scale.clamp(min=1e-12)):
                return False
        return True


def _in_double(value: torch.Tensor) -> torch.Tensor:
    return value.detach().double() if value.is_floating_point() else value.detach()
