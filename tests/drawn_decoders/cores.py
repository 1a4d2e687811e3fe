"""How attention itself is spelt: the fused operator, products by hand, einsum, baddbmm, and queries in groups."""

from __future__ import annotations

import torch
from drawn_decoders.form import AttentionForm
from torch.nn import functional as F

__all__ = ["attended"]

NEVER = -1e9
CAP = 2.0


def attended(
    form: AttentionForm,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    may: torch.Tensor | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the heads give, [b, h, t, v], and the weights [b, h, t, s] if they are there.

    Queries [b, h, t, d], keys [b, k, s, d], values [b, k, s, v]; `may` [t, s] says where queries may look (None: the
    fused operator makes its own mask), `bias` [h, t, s] is added to scores, `sinks` [h] are a further column of them.
    """
    if form.core == "fused":
        return _fused(form, q, k, v, may, bias), None
    if form.core == "grouped":
        return _grouped(form, q, k, v, may, bias, sinks)
    k, v = (_expanded(form, y) for y in (k, v))
    scale = form.key_size**-0.5
    if form.core == "baddbmm":
        return _baddbmm(q, k, v, may, bias, scale)
    if form.core == "einsum":
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) * scale
    else:
        scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    weights = _weights(form, scores, may, bias, sinks)
    if form.core == "einsum":
        return torch.einsum("bhts,bhsd->bhtd", weights, v), weights
    return torch.matmul(weights, v), weights


def _expanded(form: AttentionForm, y: torch.Tensor) -> torch.Tensor:
    """Keys or values for each of the query heads."""
    if form.group == 1:
        return y
    b, heads, s, d = y.shape
    if form.expansion == "interleave":
        return y.repeat_interleave(form.group, 1)
    if form.expansion == "tile":
        return y.repeat(1, form.group, 1, 1)
    return y[:, :, None].expand(b, heads, form.group, s, d).reshape(b, -1, s, d)


def _weights(
    form: AttentionForm,
    scores: torch.Tensor,
    may: torch.Tensor | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    assert may is not None
    if form.cap:
        scores = torch.tanh(scores / CAP) * CAP
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~may, float("-inf")) if form.filled else scores + _added(may)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks[..., None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def _added(may: torch.Tensor) -> torch.Tensor:
    return torch.zeros(may.shape, dtype=torch.float64).masked_fill(~may, NEVER)


def _fused(
    form: AttentionForm,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    may: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    mask = may
    if may is not None and bias is not None:
        mask = bias.masked_fill(~may, float("-inf")) if form.filled else bias + _added(may)
    elif may is not None and not form.filled:
        mask = _added(may)
    shared = form.group > 1
    if shared and form.expansion == "tile":
        k, v, shared = _expanded(form, k), _expanded(form, v), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)


def _grouped(
    form: AttentionForm,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    may: torch.Tensor | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    b, _, t, d = q.shape
    q = q.view(b, form.heads, form.group, t, d)
    bias = None if bias is None else bias.view(form.heads, form.group, *bias.shape[1:])
    sinks = None if sinks is None else sinks.view(form.heads, form.group)
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) * form.key_size**-0.5
    weights = _weights(form, scores, may, bias, sinks)
    mixed = torch.einsum("bkgts,bksd->bkgtd", weights, v)
    return mixed.reshape(b, form.heads * form.group, t, -1), weights


def _baddbmm(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    may: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    assert may is not None
    (b, h, t, d), s = q.shape, k.shape[2]
    added = _added(may) if bias is None else bias + _added(may)
    added = added.expand(b, h, t, s).reshape(b * h, t, s)
    scores = torch.baddbmm(added, q.reshape(b * h, t, d), k.reshape(b * h, s, d).transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1)
    mixed = torch.bmm(weights, v.reshape(b * h, s, -1))
    return mixed.view(b, h, t, -1), weights.view(b, h, t, s)
