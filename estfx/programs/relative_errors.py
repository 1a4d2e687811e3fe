"""How far values and gradients are from those that are wanted, and along which direction gradients are taken."""

from __future__ import annotations

import torch

__all__ = ["direction", "relative_error", "worst_error"]

Tensors = list[torch.Tensor]


def direction(value: torch.Tensor) -> torch.Tensor:
    """A fixed direction without symmetry, of a tensor's shape and type, along which gradients are compared."""
    steps = torch.arange(value.numel(), dtype=torch.float64, device=value.device)
    return torch.cos(steps * 0.7 + 0.3).reshape(value.shape).to(value.dtype)


def worst_error(want: tuple[Tensors, Tensors], got: tuple[Tensors, Tensors]) -> float:
    """The largest relative error of values and of gradients; 0.0 only if they are equal to the bit.

    Each is measured against its own largest entry, but a gradient at least against a thousandth of the largest
    gradient's: some, such as that of a key's bias under a softmax, are zero but for rounding.
    """
    floor = 1e-3 * max((t.nan_to_num().abs().max().item() for t in want[1] if t.numel()), default=0.0)
    values = [relative_error(w, g) for w, g in zip(want[0], got[0], strict=True)]
    return max(values + [relative_error(w, g, floor) for w, g in zip(want[1], got[1], strict=True)])


def relative_error(want: torch.Tensor, got: torch.Tensor, floor: float = 0.0) -> float:
    """The largest difference, relative to the largest value wanted; infinite where only one side has a NaN."""
    if want.shape != got.shape:
        return float("inf")
    if torch.equal(want, got):
        return 0.0
    same_nan = torch.equal(want.isnan(), got.isnan())
    scale = max(want.nan_to_num().abs().max().item(), floor)
    return (want - got).nan_to_num().abs().max().item() / (scale or 1.0) if same_nan else float("inf")
