"""Low-rank updates of weights, for all stitches alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["add_updates", "merge_updates"]


class LowRank(nn.Module):
    """weight + up · down, which begins as the weight itself."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        like: Any = {"dtype": weight.dtype, "device": weight.device}
        self.down = nn.Parameter(torch.randn(rank, columns, **like) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, **like))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def add_updates(layers: list[nn.Module], rank: int) -> int:
    """Gives every matrix in the layers that has more rows and columns than `rank` an update; how many there are."""
    number = 0
    for layer in layers:
        for module in list(layer.modules()):
            for name, weight in list(module._parameters.items()):
                if weight is not None and weight.ndim == 2 and min(weight.shape) > rank:
                    weight.requires_grad_(False)
                    parametrize.register_parametrization(module, name, LowRank(weight, rank))
                    number += 1
    return number


def merge_updates(layers: list[nn.Module]) -> None:
    """The updates become a part of the weights, which are parameters again."""
    for layer in layers:
        for module in list(layer.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
