"""Decoders of any form: how branches join the stream, what layers leave elsewhere, and what they share."""

from __future__ import annotations

from typing import Any

import torch
from drawn_decoders.attention import Attention
from drawn_decoders.convolutions import Convolution, GatedConvolution
from drawn_decoders.experts import Experts
from drawn_decoders.form import EXPERTS, Form
from drawn_decoders.latent import ROTATED, LatentAttention
from drawn_decoders.mlps import Mlp
from drawn_decoders.positions import allowed, angles, buckets, distances, rotated_size, slopes
from drawn_decoders.units import WHOLE, Norm, Units, WithUnits
from torch import nn

__all__ = ["Decoder", "Layer"]

MIXERS: dict[str, Any] = {
    "heads": Attention,
    "latent": LatentAttention,
    "gated convolution": GatedConvolution,
    "convolution": Convolution,
}
Kept = dict[str, dict[str, torch.Tensor]]  # of a layer: by module and key, which units are kept


class Manager:
    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []


class Layer(nn.Module):
    def __init__(self, form: Form, manager: Manager) -> None:
        super().__init__()
        self.form, hidden = form, form.hidden
        self.attention = MIXERS[form.attention.mixer](form.attention, hidden)
        gate = form.mlp.kind == "gated"
        self.mlp = Experts(form.mlp, hidden) if form.mlp.kind in EXPERTS else Mlp(form.mlp, hidden, gate=gate)
        self.norms = nn.ModuleList(Norm(hidden, kind=form.norm) for _ in range(4))
        if form.residual == "parallel in one":
            width = self.attention.queries * form.attention.value_size
            self.attention.out = self.mlp.down = nn.Identity()
            self.out = nn.Linear(width + form.mlp.neurons, hidden, bias=form.attention.bias)
        if form.layer_scale in ("number", "channels"):
            size = () if form.layer_scale == "number" else (hidden,)
            self.scales = nn.ParameterList(torch.rand(size) + 0.5 for _ in range(2))
        elif form.layer_scale == "tensor":
            self.plain_scale = torch.rand(hidden, dtype=torch.float64) + 0.5
        elif form.layer_scale == "tensors":
            self.plain_scales = [torch.rand(hidden, dtype=torch.float64) + 0.5 for _ in range(2)]
        self.held = torch.rand(hidden, dtype=torch.float64) + 0.5 if form.held == "stream" else None
        if form.held == "units":
            for part, size in ((self.attention, getattr(self.attention, "queries", 0)), (self.mlp, form.mlp.neurons)):
                if hasattr(part, "held"):
                    part.held = torch.rand(size, dtype=torch.float64) + 0.5
        self.manager = manager if form.effect == "object" else None
        self.aux: torch.Tensor | None = None
        if form.effect in ("attribute", "argument", "object"):
            self.router = nn.Linear(hidden, 3)
        elif form.effect == "buffer":
            self.register_buffer("mean", torch.zeros(hidden))
        elif form.effect == "weights" and hasattr(self.attention, "remembers"):
            self.attention.remembers = True

    def units(self) -> list[tuple[str, Units]]:
        """Each with the path of the module that has them; `closing` is a path in the layer."""
        found = []
        for path, module in self.named_modules():
            for units in module.units() if isinstance(module, WithUnits) else []:
                closing = "out.weight" if self.form.residual == "parallel in one" else f"{path}.{units.closing}"
                dim = 1 if self.form.residual == "parallel in one" else units.dim
                found.append((path, Units(units.role, units.size, closing, units.key, dim)))
        return found

    def keep(self, kept: Kept) -> None:
        for path, module in self.named_modules():
            if isinstance(module, WithUnits):
                module.kept = kept.get(path, WHOLE)

    def leave(self, x: torch.Tensor, losses: list[torch.Tensor] | None) -> None:
        """What a layer does beside returning a stream."""
        effect = self.form.effect
        if effect == "buffer":
            self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        elif effect in ("attribute", "argument", "object"):
            loss = self.router(x).softmax(-1).mean((0, 1)).square().sum()
            if effect == "attribute":
                self.aux = loss
            elif effect == "object":
                assert self.manager is not None
                self.manager.losses.append(loss)
            else:
                assert losses is not None
                losses.append(loss)

    def joined(self, x: torch.Tensor, branch: torch.Tensor, number: int) -> torch.Tensor:
        if self.form.layer_scale in ("number", "channels"):
            branch = branch * self.scales[number]
        elif self.form.layer_scale == "tensor":
            branch = branch * self.plain_scale
        elif self.form.layer_scale == "tensors":
            branch = branch * self.plain_scales[number]
        branch = branch * self.form.scale if self.form.scale != 1 else branch
        branch = branch if self.held is None else branch * self.held
        return branch + x if self.form.branch_first else x + branch

    def forward(
        self, x: torch.Tensor, may: Any = None, tables: Any = None, losses: list[torch.Tensor] | None = None
    ) -> Any:
        self.leave(x, losses)
        x = self.passed(x, may, tables)
        return (x,) if self.form.returns == "tuple" else x

    def passed(self, x: torch.Tensor, may: Any, tables: Any) -> torch.Tensor:
        a, b, c, d = self.norms
        match self.form.residual:
            case "pre":
                x = self.joined(x, self.attention(a(x), may, tables), 0)
                return self.joined(x, self.mlp(b(x)), 1)
            case "post":
                x = self.joined(x, a(self.attention(x, may, tables)), 0)
                return self.joined(x, b(self.mlp(x)), 1)
            case "sandwich":
                x = self.joined(x, b(self.attention(a(x), may, tables)), 0)
                return self.joined(x, d(self.mlp(c(x))), 1)
            case "parallel":
                return self.joined(x, self.attention(a(x), may, tables) + self.mlp(b(x)), 0)
            case "parallel in one":
                normed = a(x)
                mixed = self.attention.before_output(normed, may, tables)
                return self.joined(x, self.out(torch.cat([mixed, self.mlp.before_output(normed)], -1)), 0)
            case "norm of the stream":
                x = a(self.joined(x, self.attention(x, may, tables), 0))
                return b(self.joined(x, self.mlp(x), 1))
        normed = a(x)
        x = self.joined(normed, self.attention(normed, may, tables), 0)
        normed = b(x)
        return self.joined(normed, self.mlp(normed), 1)


class Decoder(nn.Module):
    """Two layers. With `kept`, the reference: by call of a layer, which units it keeps, or None if it is skipped."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.manager = form, Manager()
        self.layers = nn.ModuleList(Layer(form, self.manager) for _ in range(2))
        first, second = self.layers
        if form.sharing == "mlp":
            second.mlp = first.mlp
        elif form.sharing == "attention":
            second.attention = first.attention
        elif form.sharing == "norm":
            second.norms = first.norms
        self.kept: dict[str, Kept | None] | None = None

    def calls(self) -> list[tuple[str, Layer]]:
        """The layers in the order in which they run, by the names that a report has for them."""
        names = [(f"layers.{i}", layer) for i, layer in enumerate(self.layers)]
        return names + [(f"{name}#2", layer) for name, layer in names] if self.form.sharing == "twice" else names

    def given(self, length: int) -> dict[str, Any]:
        """What the layers are given beside the stream."""
        attention = self.form.attention
        found: dict[str, Any] = {}
        if attention.mixer not in ("heads", "latent"):
            return found
        if attention.masking == "given":
            found["may"] = allowed(length, attention.window)
        if attention.tables != "given" or attention.positions == "none":
            return found
        if attention.positions == "slopes":
            heads = slopes(attention.heads * attention.group)
            found["tables"] = (heads[:, None, None] * distances(length),)
        elif attention.positions in ("relative", "table"):
            found["tables"] = (buckets(length),)
        else:
            found["tables"] = angles(ROTATED if attention.mixer == "latent" else rotated_size(attention), length)
        return found

    def forward(self, x: torch.Tensor) -> Any:
        given, losses = self.given(x.shape[1]), []
        if self.form.effect == "argument":
            given["losses"] = losses
        for name, layer in self.calls():
            if self.kept is not None:
                kept = self.kept[name]
                if kept is None:
                    continue
                layer.keep(kept)
            x = layer(x, **given)
            x = x[0] if self.form.returns == "tuple" else x
        losses = losses + self.manager.losses + [layer.aux for layer in self.layers if layer.aux is not None]
        self.manager.losses.clear()
        return (x, torch.stack(losses).sum()) if losses else x

    def left(self) -> list[torch.Tensor]:
        """What lies in the layers after a run."""
        found = [buffer for _, buffer in self.named_buffers()]
        found += [layer.aux for layer in self.layers if layer.aux is not None]
        return found + [m.last for m in self.modules() if getattr(m, "last", None) is not None]
