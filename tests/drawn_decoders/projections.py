"""How queries, keys and values come out of the stream, and go back into it."""

from __future__ import annotations

from typing import ClassVar

import torch
from drawn_decoders.form import AttentionForm
from drawn_decoders.units import weight
from torch import nn

__all__ = ["Output", "Projection", "Transposed"]

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Transposed(nn.Module):
    """A linear map whose matrix has its inputs first, as GPT-2's."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = weight(inputs, outputs)
        self.bias = weight(outputs) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return x @ self.weight
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.weight.shape[-1])  # not -1: an expert may have no tokens


class Projection(nn.Module):
    """Queries [b, t, h, d], keys [b, t, k, d] and values [b, t, k, v] of the stream [b, t, hidden]."""

    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__()
        self.form = form
        keys, values = form.heads * form.key_size, form.heads * form.value_size
        queries = keys * form.group
        match form.layout:
            case "separate":
                self.q = nn.Linear(hidden, queries, bias=form.bias)
                self.k = nn.Linear(hidden, keys, bias=form.bias)
                if not form.tied_values:
                    self.v = nn.Linear(hidden, values, bias=form.bias)
            case "keys with values":
                self.q = nn.Linear(hidden, queries, bias=form.bias)
                self.kv = nn.Linear(hidden, keys + values, bias=form.bias)
            case "weights":
                self.wq = weight(hidden, form.heads * form.group, form.key_size)
                self.wk = weight(hidden, form.heads, form.key_size)
                self.wv = weight(hidden, form.heads, form.value_size)
            case "stacked weights":
                self.wqkv = weight(3, form.heads, hidden, form.key_size)
            case "transposed":
                self.qkv = Transposed(hidden, queries + keys + values, form.bias)
            case _:
                self.qkv = nn.Linear(hidden, queries + keys + values, bias=form.bias)

    def forward(self, x: torch.Tensor) -> Three:
        form, (b, t, _) = self.form, x.shape
        heads, d = form.heads, form.key_size
        match form.layout:
            case "separate":
                q, k = self.q(x), self.k(x)
                v = k if form.tied_values else self.v(x)
            case "weights":
                q, k, v = (torch.einsum("btc,chd->bthd", x, w) for w in (self.wq, self.wk, self.wv))
                return q, k, v
            case "stacked weights":
                q, k, v = torch.einsum("btc,nhcd->nbthd", x, self.wqkv).unbind(0)
                return q, k, v
            case "keys with values":
                q = self.q(x).view(b, t, -1, d)
                k, v = self.kv(x).view(b, t, heads, -1).split([d, form.value_size], -1)
                return q, k, v
            case "by group":
                parts = self.qkv(x).view(b, t, heads, -1).split([form.group * d, d, form.value_size], -1)
                return parts[0].reshape(b, t, -1, d), parts[1], parts[2]
            case "three first":
                q, k, v = self.qkv(x).view(b, t, 3, heads, d).unbind(2)
                return q, k, v
            case "three middle":
                q, k, v = self.qkv(x).view(b, t, heads, 3 * d).chunk(3, -1)
                return q, k, v
            case "three last":
                q, k, v = self.qkv(x).view(b, t, heads, d, 3).unbind(-1)
                return q, k, v
            case _:
                sizes = [heads * form.group * d, heads * d, heads * form.value_size]
                q, k, v = self.qkv(x).split(sizes, -1)
        return q.view(b, t, -1, d), k.view(b, t, heads, d), v.view(b, t, heads, -1)


class Output(nn.Module):
    """What heads give, [b, t, h·v], back into the stream."""

    closing: ClassVar = {"linear": ("linear.weight", 1), "transposed": ("linear.weight", 0), "einsum": ("weight", 0)}

    def __init__(self, kind: str, heads: int, value_size: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        if kind == "linear":
            self.linear: nn.Module = nn.Linear(heads * value_size, hidden, bias=bias)
        elif kind == "transposed":
            self.linear = Transposed(heads * value_size, hidden, bias)
        else:
            self.weight = weight(heads, value_size, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "einsum":
            return torch.einsum("bthd,hdo->bto", x.view(*x.shape[:2], self.heads, -1), self.weight)
        return self.linear(x)
