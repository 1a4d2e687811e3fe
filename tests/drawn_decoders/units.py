"""The units that a form has, and modules that can keep a part of them: the reference, which knows nothing of estfx."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Norm", "Units", "WithUnits", "activation", "places", "share", "weight"]


@dataclass(frozen=True)
class Units:
    """Units of one kind that a module has: what may be drawn from, if estfx finds them."""

    role: str  # "heads", "neurons", "channels"
    size: int
    closing: str  # the parameter whose product sums over them, by its path in the module
    key: str  # what the module calls them
    dim: int = 1  # of that parameter


WHOLE: dict[str, torch.Tensor] = {}  # one for all modules, so that layers are alike


class WithUnits(nn.Module):
    """A module that can be restricted: `kept` has, by key, the indices of the units that it keeps. Empty: the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = WHOLE

    def units(self) -> list[Units]:
        raise NotImplementedError


def share(size: int, kept: torch.Tensor) -> torch.Tensor:
    """`total / kept` at the kept units, 0 at the others."""
    mask = torch.zeros(size, dtype=torch.float64)
    mask[kept] = size / len(kept)
    return mask


def places(mask: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """The positions that a mask keeps, of so many a unit; None for all."""
    return None if mask is None else mask.repeat_interleave(size).nonzero()[:, 0]


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.4)


class Norm(nn.Module):
    """A norm over the last dimension; with `kept`, over these positions alone, the others being 0."""

    def __init__(self, *size: int, kind: str = "by hand") -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(size) * 0.1 + 1)
        if kind == "layer norm":
            self.bias = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        weight, bias = self.weight, self.bias if self.kind == "layer norm" else None
        if kept is None:
            return self.normed(x, weight, bias)
        part = self.normed(x[..., kept], weight[kept], None if bias is None else bias[kept])
        return torch.zeros_like(x).index_copy(-1, kept, part)

    def normed(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.kind == "layer norm":
            return F.layer_norm(x, weight.shape, weight, bias, 1e-5)
        if self.kind == "fused":
            return F.rms_norm(x, weight.shape, weight, 1e-6)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def activation(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "squared relu":
        return F.relu(x).square()
    return F.silu(x) if name == "silu" else F.gelu(x)
