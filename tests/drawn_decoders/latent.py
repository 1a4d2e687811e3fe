"""Latent attention: keys and values come out of a narrow latent, and one rotated key is shared by all heads."""

from __future__ import annotations

import torch
from drawn_decoders.attention import Heads, Tables
from drawn_decoders.form import AttentionForm
from drawn_decoders.units import Norm
from torch import nn

__all__ = ["LatentAttention"]

ROTATED = 2


class LatentAttention(Heads):
    """DeepSeek's. A head's queries and keys are `key_size` channels of their own, and two that are rotated."""

    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__(form, hidden, ROTATED)
        size = form.key_size + ROTATED
        if form.query_rank:
            self.q_down, self.q_up = nn.Linear(hidden, form.query_rank), nn.Linear(form.query_rank, form.heads * size)
            self.q_norm = Norm(form.query_rank)
        else:
            self.q = nn.Linear(hidden, form.heads * size)
        self.down = nn.Linear(hidden, form.rank + ROTATED)
        self.norm = Norm(form.rank)
        self.up = nn.Linear(form.rank, form.heads * (form.key_size + form.value_size))

    def forward(self, x: torch.Tensor, may: torch.Tensor | None = None, tables: Tables = None) -> torch.Tensor:
        form, (b, t, _) = self.form, x.shape
        q = self.q_up(self.q_norm(self.q_down(x))) if form.query_rank else self.q(x)
        q_plain, q_turned = q.view(b, t, form.heads, -1).transpose(1, 2).split([form.key_size, ROTATED], -1)
        latent, k_turned = self.down(x).split([form.rank, ROTATED], -1)
        kv = self.up(self.norm(latent)).view(b, t, form.heads, -1).transpose(1, 2)
        k_plain, v = kv.split([form.key_size, form.value_size], -1)
        q_turned, k_turned = self.turned(q_turned, k_turned.view(b, 1, t, ROTATED), tables)
        q = torch.cat([q_plain, q_turned], -1)
        k = torch.cat([k_plain, k_turned.expand(-1, form.heads, -1, -1)], -1)
        return self.out(self.mixed(x, q, k, v, may, None))
