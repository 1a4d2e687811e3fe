"""What layers do across their units. What a part of them cannot do must be found out, so that they stay whole."""

from __future__ import annotations

import torch

__all__ = ["IN_TWO", "across_heads", "across_neurons"]

IN_TWO = ("halves", "shuffled")  # a unit has a neuron in each half


def across_neurons(how: str, y: torch.Tensor, x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Of neurons [b, t, n], those of the stream [b, t, hidden]; statistics are taken over the kept ones."""
    match how:
        case "none":
            return y
        case "rolled":
            return y + y.roll(1, -1)
        case "flipped":
            return y * y.flip(-1)
        case "summed up":
            return y.cumsum(-1)
        case "centred":
            return y - _over(y, kept).mean(-1, keepdim=True)
        case "weighed":
            part = _over(y, kept).softmax(-1)
            return y * (part if kept is None else torch.zeros_like(y).index_copy(-1, kept, part))
        case "largest":
            return y.where(y >= y.topk(2, -1).values[..., -1:], 0.0)
        case "halves":
            half = y.shape[-1] // 2
            first, second = y[..., :half], y[..., half : 2 * half]
            return torch.cat([first * second.sigmoid(), second * first.sigmoid(), y[..., 2 * half :]], -1)
        case "shuffled":
            return y.unflatten(-1, (2, y.shape[-1] // 2)).transpose(-1, -2).flatten(-2)
        case "numbered":
            return y * torch.arange(1, y.shape[-1] + 1, dtype=y.dtype).log1p()
        case "permuted":
            return y + y[..., torch.arange(y.shape[-1] - 1, -1, -1)]
        case "with the stream":
            return y * x
    return y


def across_heads(how: str, y: torch.Tensor, kept: torch.Tensor | None, talking: torch.Tensor | None) -> torch.Tensor:
    """Of what heads give, [b, t, h, d]."""
    match how:
        case "talking":
            assert talking is not None
            return torch.einsum("bthd,hg->btgd", y, talking)
        case "rolled":
            return y + y.roll(1, 2)
        case "first added":
            return y + y[:, :, :1]
        case "centred":
            return y - (y if kept is None else y[:, :, kept]).mean(2, keepdim=True)
        case "numbered":
            return y * torch.arange(1, y.shape[2] + 1, dtype=y.dtype).log1p()[:, None]
    return y


def _over(y: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return y if kept is None else y[..., kept]
