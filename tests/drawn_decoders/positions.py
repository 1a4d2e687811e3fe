"""How positions are told: rotations of queries and keys, slopes and biases of scores, masks."""

from __future__ import annotations

import torch
from drawn_decoders.form import LONGEST, AttentionForm

__all__ = ["allowed", "angles", "rotated", "rotated_size", "slopes"]

ROTATIONS = ("rotary", "partial", "interleaved", "complex")
WINDOW = 3


def rotated_size(form: AttentionForm) -> int:
    """How many of a head's channels are rotated."""
    if form.positions not in ROTATIONS:
        return 0
    return 2 if form.positions == "partial" else form.key_size


def angles(size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, size / 2]."""
    steps = torch.outer(
        torch.arange(length, dtype=torch.float64), 10.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    )
    return steps.cos(), steps.sin()


def rotated(positions: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys [b, h, t, d], rotated by angles [t, r / 2]."""
    size = 2 * cos.shape[-1]
    if positions == "partial":
        turned, rest = x[..., :size], x[..., size:]
        return torch.cat([_halves(turned, cos, sin), rest], -1)
    if positions == "interleaved":
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    if positions == "complex":
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], size // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    return _halves(x, cos, sin)


def _halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def slopes(heads: int) -> torch.Tensor:
    """ALiBi's, one for each head."""
    return 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float64)


def distances(length: int) -> torch.Tensor:
    """Of keys from queries, [t, s], 0 and below where a query may look."""
    steps = torch.arange(length)
    return steps[None, :] - steps[:, None]


def buckets(length: int) -> torch.Tensor:
    """Of a relative bias: distances as numbers from 0 on."""
    return distances(length) + LONGEST - 1


def allowed(length: int, window: bool) -> torch.Tensor:
    """Where queries [t] may look at keys [s]."""
    may = torch.ones(length, length, dtype=torch.bool).tril()
    return may.triu(1 - WINDOW) if window else may
