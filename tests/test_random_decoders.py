"""The oracles as properties: decoders of random form and size, random fractions, random draws.

The generator draws every form that the passes claim to know: both orders of a residual's operands, norms before, after
and around a branch, parallel branches, scaled residuals, multi-head, grouped and multi-query attention, fused and by
hand, fused and separate projections, gated and plain MLPs, biases, norms over queries and keys.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

HIDDEN = 20


@dataclass(frozen=True)
class Form:
    heads: int  # for keys and values
    group: int  # query heads for each
    head_dim: int
    neurons: int
    fused_projection: str  # "none", "in order" (q, k, v), "by head"
    core: str  # "fused", "by hand"
    gated: bool
    fused_gate: bool
    bias: bool
    query_norm: str  # "none", "each head", "all heads"
    residual: str  # "pre", "post", "sandwich", "parallel"
    branch_first: bool
    scale: float


forms = st.builds(
    Form,
    heads=st.integers(1, 4),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6]),
    neurons=st.integers(2, 23),
    fused_projection=st.sampled_from(["none", "in order", "by head"]),
    core=st.sampled_from(["fused", "by hand"]),
    gated=st.booleans(),
    fused_gate=st.booleans(),
    bias=st.booleans(),
    query_norm=st.sampled_from(["none", "each head", "all heads"]),
    residual=st.sampled_from(["pre", "post", "sandwich", "parallel"]),
    branch_first=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
)


class Norm(nn.Module):
    """RMS norm; `kept` restricts its statistic, for the reference."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * 0.1 + 1)
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        part = x[..., self.kept]
        part = part * torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight[self.kept]
        return torch.zeros_like(x).index_copy(-1, self.kept, part)


class Attention(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        queries, keys = form.heads * form.group * form.head_dim, form.heads * form.head_dim
        if form.fused_projection == "none":
            self.q = nn.Linear(HIDDEN, queries, bias=form.bias)
            self.k = nn.Linear(HIDDEN, keys, bias=form.bias)
            self.v = nn.Linear(HIDDEN, keys, bias=form.bias)
        else:
            self.qkv = nn.Linear(HIDDEN, queries + 2 * keys, bias=form.bias)
        self.out = nn.Linear(queries, HIDDEN, bias=form.bias)
        if form.query_norm == "each head":
            self.q_norm = Norm(form.head_dim)
        elif form.query_norm == "all heads":
            self.q_norm = Norm(queries)

    def project(self, x: torch.Tensor) -> list[torch.Tensor]:
        form, (b, t, _) = self.form, x.shape
        if form.fused_projection == "none":
            return [self.q(x), self.k(x), self.v(x)]
        fused = self.qkv(x)
        if form.fused_projection == "in order":
            keys = form.heads * form.head_dim
            return list(fused.split([form.group * keys, keys, keys], -1))
        fused = fused.view(b, t, form.heads, form.group + 2, form.head_dim)
        parts = [fused[..., : form.group, :], fused[..., form.group, :], fused[..., form.group + 1, :]]
        return [part.reshape(b, t, -1) for part in parts]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        form, (b, t, _) = self.form, x.shape
        q, k, v = self.project(x)
        if form.query_norm == "all heads":
            q = self.q_norm(q)
        q = q.view(b, t, -1, form.head_dim).transpose(1, 2)
        if form.query_norm == "each head":
            q = self.q_norm(q)
        k, v = (y.view(b, t, form.heads, form.head_dim).transpose(1, 2) for y in (k, v))
        if form.core == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=form.group > 1)
        else:
            k, v = (
                y[:, :, None].expand(b, form.heads, form.group, t, form.head_dim).reshape(b, -1, t, form.head_dim)
                for y in (k, v)
            )
            scores = torch.matmul(q, k.transpose(-1, -2)) * form.head_dim**-0.5
            scores = scores + torch.full((t, t), -1e9, dtype=x.dtype).triu(1)
            mixed = torch.matmul(scores.softmax(-1), v)
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        twice = form.gated and form.fused_gate
        self.up = nn.Linear(HIDDEN, form.neurons * (2 if twice else 1), bias=form.bias)
        if form.gated and not form.fused_gate:
            self.gate = nn.Linear(HIDDEN, form.neurons, bias=form.bias)
        self.down = nn.Linear(form.neurons, HIDDEN, bias=form.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.form.gated:
            return self.down(F.gelu(self.up(x)))
        up, gate = self.up(x).chunk(2, -1) if self.form.fused_gate else (self.up(x), self.gate(x))
        return self.down(up * F.silu(gate))


class Layer(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.attention, self.mlp = form, Attention(form), Mlp(form)
        self.norms = nn.ModuleList(Norm(HIDDEN) for _ in range(4))

    def joined(self, x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        branch = branch * self.form.scale if self.form.scale != 1 else branch
        return branch + x if self.form.branch_first else x + branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d = self.norms
        match self.form.residual:
            case "pre":
                x = self.joined(x, self.attention(a(x)))
                return self.joined(x, self.mlp(b(x)))
            case "post":
                x = self.joined(x, a(self.attention(x)))
                return self.joined(x, b(self.mlp(x)))
            case "sandwich":
                x = self.joined(x, b(self.attention(a(x))))
                return self.joined(x, d(self.mlp(c(x))))
        return self.joined(x, self.attention(a(x)) + self.mlp(b(x)))


class Decoder(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(form) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def run(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    model.zero_grad()
    value = model(x)
    (value * torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)).sum().backward()
    return value.detach(), {name: p.grad for name, p in model.named_parameters()}


def positions(units: torch.Tensor, count: int, size: int) -> torch.Tensor:
    return torch.arange(size).reshape(count, -1)[units].reshape(-1)


def mask_original(model: nn.Module, form: Form, subnetwork: Any) -> dict[str, torch.Tensor]:
    """Masks the closing weights of what is dropped, takes out skipped layers; returns the masks by parameter."""
    masks = {}
    for name, runs in subnetwork.layers.items():
        layer = model.get_submodule(name)
        if not runs:
            layer.forward = lambda x: x
            continue
        kv_heads = form.heads > 1
        units = form.heads if kv_heads else form.group
        for role, path, count in (("heads", "attention.out", units), ("neurons", "mlp.down", form.neurons)):
            if role not in subnetwork.units[name]:
                assert count == 1
                continue
            weight, kept = layer.get_submodule(path).weight, subnetwork.units[name][role]
            mask = torch.zeros(weight.shape[1], dtype=weight.dtype)
            mask[positions(kept, count, len(mask))] = count / len(kept)
            weight.data.mul_(mask)
            masks[f"{name}.{path}.weight"] = mask
            if role == "heads" and form.query_norm == "all heads":
                layer.attention.q_norm.kept = positions(kept, count, len(mask))
    return masks


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(form=forms, seed=st.integers(0, 1000), keep=st.sampled_from([0.3, 0.5, 0.8]))
def test_oracles_hold_for_any_form(form: Form, seed: int, keep: float) -> None:
    torch.manual_seed(seed)
    original = Decoder(form).double()
    x = torch.randn(2, 7, HIDDEN, dtype=torch.float64)
    want = run(original, x)
    schedule = Schedule(stages=[Stage(start=0), Stage(start=1, heads=keep, neurons=keep, layers=0.5)])
    model = estfx.transform(
        copy.deepcopy(original), schedule, example_inputs=(x,), compile=False, seed=seed, verify=False
    )
    found = {axis.role: axis.size for axis in model.report.layers[0].axes}
    heads = form.heads if form.heads > 1 else form.group
    assert found == ({"heads": heads} if heads > 1 else {}) | {"neurons": form.neurons}
    assert model.report.layers[0].droppable

    model.set_step(0)  # everything kept: to the bit
    got = run(model, x)
    assert torch.equal(got[0], want[0])
    for name, grad in want[1].items():
        assert torch.equal(got[1][name], grad) if grad is not None else got[1][name] is None

    model.set_step(1 + seed)  # a part: the masked whole
    got = run(model, x)
    masks = mask_original(original, form, model.subnetwork)
    want = run(original, x)
    grads = {n: g * masks[n] if n in masks else g for n, g in want[1].items()}
    assert (got[0] - want[0]).abs().max() <= 1e-10 * want[0].abs().max()
    largest = max(g.abs().max() for g in grads.values() if g is not None)
    for name, grad in grads.items():
        assert (grad is None) == (got[1][name] is None)
        if grad is not None:
            scale = max(grad.abs().max(), 1e-3 * largest)
            assert (got[1][name] - grad).abs().max() <= 1e-10 * scale, name
