"""Convolutions along the sequence: of each channel by itself, and the mixers that are made of them."""

from __future__ import annotations

import torch
from drawn_decoders.form import AttentionForm
from drawn_decoders.units import Units, WithUnits, share
from torch import nn
from torch.nn import functional as F

__all__ = ["Causal", "Convolution", "GatedConvolution"]

TAPS = 3


class Causal(nn.Module):
    """Each channel of [b, t, c] is filtered along t by taps of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, TAPS, groups=channels, padding=TAPS - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)


class _Mixer(WithUnits):
    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__()
        self.channels = form.heads
        self.out = nn.Linear(form.heads, hidden, bias=form.bias)

    def units(self) -> list[Units]:
        return [Units("channels", self.channels, "out.weight", "channels")]

    def closed(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.kept.get("channels")
        return self.out(x if kept is None else x * share(self.channels, kept))


class GatedConvolution(_Mixer):
    """A short convolution between two gates, as in LFM2."""

    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__(form, hidden)
        self.into = nn.Linear(hidden, 3 * form.heads, bias=form.bias)
        self.filter = Causal(form.heads)

    def forward(self, x: torch.Tensor, may: torch.Tensor | None = None, tables: object = None) -> torch.Tensor:
        before, after, y = self.into(x).chunk(3, -1)
        return self.closed(after * self.filter(before * y))


class Convolution(_Mixer):
    """A convolution that mixes channels, and a nonlinearity."""

    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__(form, hidden)
        self.conv = nn.Conv1d(hidden, form.heads, TAPS, bias=form.bias)

    def forward(self, x: torch.Tensor, may: torch.Tensor | None = None, tables: object = None) -> torch.Tensor:
        y = self.conv(F.pad(x.transpose(1, 2), (TAPS - 1, 0)))
        return self.closed(F.silu(y).transpose(1, 2))
