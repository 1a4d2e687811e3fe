"""Small decoders written by hand, one form of residual branch or attention each, and what tests do with layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from estfx import trace
from estfx.graphs import tags
from estfx.graphs.dimensions import Axis
from estfx.graphs.pipeline import Pass, run_passes
from estfx.passes import analysis

VOCABULARY, HIDDEN, HEADS, HEAD_DIM, NEURONS = 101, 40, 5, 8, 56
EXPERTS, INNER = 6, 14


class Attention(nn.Module):
    """Causal attention; queries, keys and values come out of one matrix, as in nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x_BTD.shape
        q, k, v = self.qkv(x_BTD).split(hidden, dim=2)
        q, k, v = (y.view(batch, length, HEADS, HEAD_DIM).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, hidden))


class GroupedAttention(nn.Module):
    """Six heads share three keys and values; scores and their softmax are written out."""

    def __init__(self, heads: int = 6, kv_heads: int = 3) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q = nn.Linear(HIDDEN, heads * HEAD_DIM, bias=False)
        self.k = nn.Linear(HIDDEN, kv_heads * HEAD_DIM, bias=False)
        self.v = nn.Linear(HIDDEN, kv_heads * HEAD_DIM, bias=False)
        self.out = nn.Linear(heads * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        q = self.q(x_BTD).view(batch, length, self.heads, HEAD_DIM).transpose(1, 2)
        k = self.k(x_BTD).view(batch, length, self.kv_heads, HEAD_DIM).transpose(1, 2)
        v = self.v(x_BTD).view(batch, length, self.kv_heads, HEAD_DIM).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        scores = (q @ k.transpose(2, 3) / HEAD_DIM**0.5).softmax(dim=-1)
        return self.out((scores @ v).transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, NEURONS)
        self.down = nn.Linear(NEURONS, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


class GatedMlp(nn.Module):
    def __init__(self, neurons: int = NEURONS) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, neurons, bias=False)
        self.up = nn.Linear(HIDDEN, neurons, bias=False)
        self.down = nn.Linear(neurons, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """Two branches, `attention` and `mlp`, with a norm for each; how they join the stream is for subclasses to say."""

    def __init__(self, attention: nn.Module | None = None, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.attention = attention or Attention()
        self.mlp = mlp or Mlp()
        self.norm_1 = nn.LayerNorm(HIDDEN)
        self.norm_2 = nn.LayerNorm(HIDDEN)


class PreNorm(Block):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD))
        return x_BTD + self.mlp(self.norm_2(x_BTD))


class Mirrored(Block):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.attention(self.norm_1(x_BTD)) + x_BTD
        return self.mlp(self.norm_2(x_BTD)) + x_BTD


class NormedBranch(Block):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.norm_1(self.attention(x_BTD))
        return x_BTD + self.norm_2(self.mlp(x_BTD))


class NormedStream(Block):
    """The first transformer's form: the norm stands on the stream itself."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.norm_1(x_BTD + self.attention(x_BTD))
        return self.norm_2(x_BTD + self.mlp(x_BTD))


class Stack(nn.Module):
    """Layers in a chain, and nothing around them: the stream comes in and goes out."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD


class Chain(Stack):
    """Layers in a chain, and a loss of what comes out."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD).square().mean()


class Decoder(nn.Module):
    """Token ids to logits."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return self.head(self.norm(x_BTD))


class Layer(nn.Module):
    """A layer that is a function of the stream `x` and of two branches, `f` and `g`, with a matrix each."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.f = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.g = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.function(self, x_BTD)


def stream() -> torch.Tensor:
    return torch.randn(3, 17, HIDDEN, generator=torch.Generator().manual_seed(0))


def graph_of(layer: nn.Module) -> GraphModule:
    """The graph of a layer as it comes from `trace`, before any pass."""
    dtype = next(layer.parameters()).dtype
    (graph,) = trace(Stack(layer), (stream().to(dtype),)).programs.values()
    return graph


def graph_of_function(function: Callable[..., torch.Tensor]) -> GraphModule:
    """The graph of `Layer(function)`, the function taking the layer and the stream."""
    return graph_of(Layer(function))


def before(pass_: type[Pass], layer: nn.Module) -> GraphModule:
    """The graph of a layer with all passes of the analysis run that come before this one."""
    names = [type(step) for step in analysis()]
    return run_passes(graph_of(layer), analysis()[: names.index(pass_)])


def analysed(layer: nn.Module) -> GraphModule:
    return run_passes(graph_of(layer), analysis())


def halved(gm: GraphModule) -> dict[Axis, int]:
    """Half the units of every role."""
    return {role.axis: role.axis.size // 2 for role in tags.get(gm, tags.Roles).found}


class Residual(Mlp):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + super().forward(x_BTD)


class SoftExperts(nn.Module):
    """Every token goes through all experts, weighted by a router whose weights add up to one."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER) / HIDDEN**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN) / INNER**0.5)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        share = self.router(x_BTD).softmax(-1)
        inner = F.gelu(torch.einsum("btd,edn->bten", x_BTD, self.up))
        return x_BTD + torch.einsum("bten,end,bte->btd", inner, self.down, share)
