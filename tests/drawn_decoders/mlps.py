"""MLPs: plain and gated, in the ways in which a gate and its matrices are spelt."""

from __future__ import annotations

import torch
from drawn_decoders.across import IN_TWO, across_neurons
from drawn_decoders.convolutions import Causal
from drawn_decoders.form import MlpForm
from drawn_decoders.projections import Transposed
from drawn_decoders.units import Norm, Units, WithUnits, activation, places, share, weight
from torch import nn
from torch.nn import functional as F

__all__ = ["Mlp", "gated"]


class Pointwise(nn.Module):
    """A linear map as a convolution of one tap."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ByEinsum(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = weight(inputs, outputs)
        self.bias = weight(outputs) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.einsum("bti,io->bto", x, self.weight)
        return result if self.bias is None else result + self.bias


MAPS = {  # a linear map, and where its matrix has the inputs
    "linear": (nn.Linear, "weight", 1),
    "transposed": (Transposed, "weight", 0),
    "einsum": (ByEinsum, "weight", 0),
    "convolution": (Pointwise, "conv.weight", 1),
}


def gated(layout: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two halves of neurons that come out of one matrix."""
    if layout == "slices":
        return x[..., ::2], x[..., 1::2]
    if layout == "pairs":
        up, gate = x.unflatten(-1, (x.shape[-1] // 2, 2)).unbind(-1)
        return up, gate
    up, gate = x.chunk(2, -1)
    return up, gate


class Mlp(WithUnits):
    def __init__(self, form: MlpForm, hidden: int, *, gate: bool) -> None:
        super().__init__()
        self.form, self.has_gate = form, gate
        make, self.closing, self.dim = MAPS[form.spelling]
        twice = gate and form.layout != "separate"
        self.up = make(hidden, form.neurons * (2 if twice else 1), form.bias)
        if gate and not twice:
            self.gate = make(hidden, form.neurons, form.bias)
        if not form.tied:
            self.down = make(form.neurons, hidden, form.bias)
        if form.norm:
            self.norm = Norm(form.neurons)
        if form.convolved:
            self.filter = Causal(form.neurons)
        self.held: torch.Tensor | None = None  # a plain tensor, one number for each of the neurons

    def units(self) -> list[Units]:
        role = "channels" if self.form.convolved else "neurons"
        closing, dim = (f"up.{self.closing}", 0) if self.form.tied else (f"down.{self.closing}", self.dim)
        size = self.form.neurons // 2 if self.form.across in IN_TWO else self.form.neurons
        return [Units(role, size, closing, "neurons", dim)]

    def mask(self) -> torch.Tensor | None:
        """`total / kept` for each of the neurons; None for the whole."""
        kept, size = self.kept.get("neurons"), self.form.neurons
        if kept is None or self.form.across not in IN_TWO:
            return None if kept is None else share(size, kept)
        half = share(size // 2, kept)
        return torch.cat([half, half, torch.ones(size % 2, dtype=torch.float64)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.before_output(x)
        return F.linear(hidden, self.up.weight.t()) if self.form.tied else self.down(hidden)

    def before_output(self, x: torch.Tensor) -> torch.Tensor:
        form, mask = self.form, self.mask()
        kept = places(mask, 1)
        if not self.has_gate:
            y = activation(form.activation, self.up(x))
        elif form.layout == "separate":
            y = self.up(x) * activation(form.activation, self.gate(x))
        else:
            up, gate = gated(form.layout, self.up(x))
            y = up * activation(form.activation, gate)
        if form.convolved:
            y = self.filter(y)
        if form.norm:
            y = self.norm(y, kept)
        if self.held is not None:
            y = y * self.held
        y = across_neurons(form.across, y, x, kept)
        if mask is not None and form.across == "shuffled":
            mask = mask.view(2, -1).T.reshape(-1)
        return y if mask is None else y * mask
