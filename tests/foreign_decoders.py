"""Decoders as others write them: how attention is spelt, where parameters live, and how layers are kept."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from hand_written import HEAD_DIM, HEADS, HIDDEN, NEURONS, VOCABULARY, PreNorm
from torch import nn
from torch.nn import functional as F

LENGTH = 32  # the longest that these take


# -- attention and parameters --------------------------------------------------------------------------------------


class NanoAttention(nn.Module):
    """nanoGPT's: queries, keys and values from `c_attn`; flash, or a softmax under a mask that is a buffer."""

    def __init__(self, flash: bool) -> None:
        super().__init__()
        self.flash = flash
        self.c_attn = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.c_proj = nn.Linear(HIDDEN, HIDDEN)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.0), nn.Dropout(0.0)
        self.n_head, self.n_embd = HEADS, HIDDEN
        if not flash:
            self.register_buffer("bias", torch.tril(torch.ones(LENGTH, LENGTH)).view(1, 1, LENGTH, LENGTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class NanoMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(HIDDEN, NEURONS)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(NEURONS, HIDDEN)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class NanoBlock(nn.Module):
    def __init__(self, flash: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.attn, self.mlp = NanoAttention(flash), NanoMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGpt(nn.Module):
    """nanoGPT: a list of blocks in a dict, positions, logits and the loss, the head tied to the embedding."""

    def __init__(self, flash: bool) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, HIDDEN),
                "wpe": nn.Embedding(LENGTH, HIDDEN),
                "drop": nn.Dropout(0.0),
                "h": nn.ModuleList([NanoBlock(flash) for _ in range(3)]),
                "ln_f": nn.LayerNorm(HIDDEN),
            }
        )
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class EinsumBlock(nn.Module):
    """No submodule at all: every weight is a parameter of the block, with the heads as a dimension."""

    def __init__(self) -> None:
        super().__init__()

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * 0.2)

        self.scale_1, self.scale_2 = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.ones(HIDDEN))
        self.w_qkv = weight(3, HEADS, HIDDEN, HEAD_DIM)
        self.w_o = weight(HEADS, HEAD_DIM, HIDDEN)
        self.w_in, self.b_in = weight(HIDDEN, NEURONS), weight(NEURONS)
        self.w_out = weight(NEURONS, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        normed = F.rms_norm(x, (HIDDEN,)) * self.scale_1
        q, k, v = torch.einsum("btd,chde->cbhte", normed, self.w_qkv).unbind(0)
        scores = torch.einsum("bhte,bhse->bhts", q, k) / HEAD_DIM**0.5
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        mixed = torch.einsum("bhts,bhse->bhte", weights, v)
        x = x + torch.einsum("bhte,hed->btd", mixed, self.w_o)
        normed = F.rms_norm(x, (HIDDEN,)) * self.scale_2
        return x + torch.einsum("btn,nd->btd", F.gelu(normed @ self.w_in + self.b_in), self.w_out)


class OneHead(nn.Module):
    """A head as lectures write it, with matrices and a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HEAD_DIM, bias=False) for _ in range(3))
        self.register_buffer("past", torch.tril(torch.ones(LENGTH, LENGTH)))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, length, _ = x.shape
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * HEAD_DIM**-0.5
        scores = scores.masked_fill(self.past[:length, :length] == 0, float("-inf"))
        return self.dropout(scores.softmax(dim=-1)) @ self.value(x)


class HeadsInAList(nn.Module):
    """One after the other, and then side by side, or `stacked` in a dimension of their own."""

    def __init__(self, stacked: bool = False, head: type[nn.Module] = OneHead) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head() for _ in range(HEADS))
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.stacked = stacked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        each = [head(x) for head in self.heads]
        return self.out(torch.stack(each, 2).flatten(2) if self.stacked else torch.cat(each, -1))


def heads_in_lists(stacked: bool) -> InList:
    return InList(*(PreNorm(HeadsInAList(stacked)) for _ in range(3)))


# -- where layers are kept -----------------------------------------------------------------------------------------


class Around(nn.Module):
    """Embedding, layers, norm and head; subclasses keep the layers, and call them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.run(self.embed(ids))))


class InList(Around):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class InDict(Around):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({f"layer_{i}": PreNorm() for i in range(count)})

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x


class AsAttributes(Around):
    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = PreNorm(), PreNorm(), PreNorm()
        self.block3, self.block4, self.block5 = PreNorm(), PreNorm(), PreNorm()

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(6):
            x = getattr(self, f"block{i}")(x)
        return x


class SequentialMlp(PreNorm):
    """Its MLP is an `nn.Sequential`, of which some members keep the stream's shape, too."""

    def __init__(self) -> None:
        inner = (nn.Linear(HIDDEN, NEURONS), nn.GELU(), nn.Linear(NEURONS, HIDDEN))
        super().__init__(mlp=nn.Sequential(nn.LayerNorm(HIDDEN), *inner))


class InSequential(Around):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SequentialMlp() for _ in range(3)))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def all_in_sequence() -> nn.Sequential:
    """The whole model is one `nn.Sequential`, and its layers another in it."""
    blocks = nn.Sequential(*(SequentialMlp() for _ in range(3)))
    parts = {"embed": nn.Embedding(VOCABULARY, HIDDEN), "blocks": blocks, "norm": nn.LayerNorm(HIDDEN)}
    return nn.Sequential(OrderedDict(parts, head=nn.Linear(HIDDEN, VOCABULARY)))


class WeightsFirst(PreNorm):
    """Returns something else before the stream."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return x.mean(-1), super().forward(x)


class OddlyNamed(Around):
    """Layers under names of their own, the first thing that they return being no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Module()
        for name in ("first layer", "second-layer", "3"):
            self.stack.add_module(name, WeightsFirst())
        self.order = list(self.stack._modules)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.order:
            _, x = self.stack.get_submodule(name)(x)
        return x


class ScaledBetween(Around):
    """Between its layers the stream is scaled, so that no layer is given the tensor that another returned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): PreNorm() for i in range(3)})

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            x = block(x * 0.9)
        return x


class Universal(Around):
    """The same layers again and again, as in a universal transformer."""

    def __init__(self, layers: int = 2, rounds: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PreNorm() for _ in range(layers))
        self.rounds = rounds

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            for layer in self.layers:
                x = layer(x)
        return x


def one_block_four_times() -> InList:
    return InList(*[PreNorm()] * 4)


def tied_between_layers() -> InList:
    """Two layers share the matrix into their neurons, and nothing else."""
    model = InList(PreNorm(), PreNorm(), PreNorm())
    model.layers[1].mlp.up.weight = model.layers[0].mlp.up.weight
    return model
