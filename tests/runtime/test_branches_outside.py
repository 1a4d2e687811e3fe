"""Layers that are one branch each, whose result the model adds to its stream outside of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, VOCABULARY, Attention, Mlp
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

IDS = torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))
Join = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Branches(nn.Module):
    """Attention and MLP in lists of their own; `join` puts what they give to the stream."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.attentions = nn.ModuleList(Attention() for _ in range(3))
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(6))
        self.join = join

    def names(self) -> list[str]:
        return [f"{group}.{i}" for i in range(3) for group in ("attentions", "mlps")]

    def forward(self, ids: torch.Tensor, factors: dict[str, float] | None = None) -> torch.Tensor:
        x_BTD = self.embed(ids)
        for name, norm in zip(self.names(), self.norms, strict=True):
            branch_BTD = self.get_submodule(name)(norm(x_BTD))
            x_BTD = self.join(x_BTD, branch_BTD if factors is None else factors[name] * branch_BTD)
        return x_BTD @ self.embed.weight.T


def evolving(model: nn.Module, **options: Any) -> Any:
    schedule = Schedule(stages=[Stage(start=0, layers=0.5), Stage(start=10, heads=0.5, neurons=0.5)], **options)
    return estfx.transform(model, schedule, example_inputs=(IDS,), compile=False)


def in_place(x_BTD: torch.Tensor, branch_BTD: torch.Tensor) -> torch.Tensor:
    x_BTD = x_BTD.clone()
    x_BTD += branch_BTD.mul(0.5)
    return x_BTD


ADDED = {
    "dropout": lambda x, branch: x + F.dropout(branch, 0.0),
    "twice": lambda x, branch: branch * 2 + x,
    "in_place": in_place,
    "normed": lambda x, branch: F.layer_norm(x + branch, (HIDDEN,)),
}


@pytest.mark.parametrize("scaling", ["identity", "inverse_keep"])
@pytest.mark.parametrize("join", ADDED.values(), ids=ADDED)
def test_a_skipped_branch_adds_nothing(join: Join, scaling: str) -> None:
    model = Branches(join)
    twin = copy.deepcopy(model)
    model = evolving(model, skipped_layers=scaling)
    assert [layer.name for layer in model.report.layers] == model.names()
    assert {axis.role for layer in model.report.layers for axis in layer.axes} == {"heads", "neurons"}
    for step in range(4):
        model.set_step(step)
        runs = model.subnetwork.layers
        assert sum(runs.values()) == 3
        factor = 2.0 if scaling == "inverse_keep" else 1.0
        want = twin(IDS, {name: factor * running for name, running in runs.items()})
        got = model(IDS)
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)
    got.sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    skipped = {name for name, running in runs.items() if not running}
    assert {".".join(name.split(".")[:2]) for name in without if not name.startswith("norms")} == skipped


OTHERWISE = {
    "normed": lambda x, branch: x + F.layer_norm(branch, (HIDDEN,), torch.ones(HIDDEN), torch.ones(HIDDEN)),
    "gate": lambda x, branch: x + torch.sigmoid(branch) * branch,
    "read_besides": lambda x, branch: (x + branch) * branch.mean(),
    "in_front_of_the_stream": lambda x, branch: x * 0.5 * branch + x,
}


@pytest.mark.parametrize("join", OTHERWISE.values(), ids=OTHERWISE)
def test_what_is_not_only_added_always_runs(join: Join) -> None:
    model = evolving(Branches(join))
    assert not any(layer.droppable for layer in model.report.layers)
    assert all("is not x + f(x) of its input x" in note for layer in model.report.layers for note in layer.notes[:1])


class WithCache(Branches):
    """Makes a KV cache in every forward, and cannot be told not to."""

    def __init__(self) -> None:
        super().__init__(ADDED["dropout"])
        self.attentions = nn.ModuleList(CachedAttention(i) for i in range(3))

    def forward(self, ids: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        cache = DynamicCache() if cache is None else cache
        x_BTD = self.embed(ids)
        for name, norm in zip(self.names(), self.norms, strict=True):
            given = (norm(x_BTD), cache) if name.startswith("attentions") else (norm(x_BTD),)
            x_BTD = x_BTD + self.get_submodule(name)(*given)
        return x_BTD @ self.embed.weight.T


class CachedAttention(Attention):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x_BTD: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        if cache is not None:
            cache.update(x_BTD[:, None], x_BTD[:, None], self.index)
        return super().forward(x_BTD)


def test_a_cache_that_only_the_model_knows_is_not_filled_in_training() -> None:
    model = WithCache()
    twin = copy.deepcopy(model)
    model = evolving(model)
    model.set_step(10)
    assert {axis.role for layer in model.report.layers for axis in layer.axes} == {"heads", "neurons"}
    assert model(IDS).shape == twin(IDS).shape
    assert sorted(model.subnetwork.units["attentions.0"]) == ["heads"]
    assert not model._runtime._warned
    model.eval()
    assert torch.equal(model(IDS), twin(IDS))


class RoundsWithACache(CachedAttention):
    """What is joined with what lies in a cache has other strides, and so other roundings."""

    def forward(self, x_BTD: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        return super().forward(x_BTD if cache is None else x_BTD * (1 + 1e-6), cache)


def test_the_original_is_compared_without_such_a_cache() -> None:
    model = WithCache()
    model.attentions = nn.ModuleList(RoundsWithACache(i) for i in range(3))
    report = evolving(model).report
    assert {axis.role for layer in report.layers for axis in layer.axes} == {"heads", "neurons"}
    assert not [layer.name for layer in report.layers if not layer.program]


def test_a_cache_that_the_caller_gives_is_filled(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving(WithCache())
    model.set_step(10)
    cache = DynamicCache()
    model(IDS, cache)
    assert cache.get_seq_length() == IDS.shape[1]
    assert "KV cache" in caplog.text
