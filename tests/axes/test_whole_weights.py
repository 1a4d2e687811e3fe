"""Weights that are computed from parameters: whole, and the kept units of the result are taken."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hand_written import HIDDEN, Chain, PreNorm, Residual, stream
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import estfx
from estfx.schedules import Schedule, Stage

PART = Schedule(stages=[Stage(start=0, heads=0.6, neurons=0.5), Stage(start=10)])
Change = Callable[[nn.Linear], object]


class Standardised(nn.Module):
    """Mean 0 and deviation 1 for each neuron."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight - weight.mean(-1, keepdim=True)) / weight.std(-1, keepdim=True)


class OfAll(nn.Module):
    """Divided by the norm of the whole matrix."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 3 / weight.pow(2).sum().sqrt()


def by(parametrization: type[nn.Module]) -> Change:
    return lambda linear: parametrize.register_parametrization(linear, "weight", parametrization())


CHANGES: dict[str, Change] = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "standardised": by(Standardised),
    "norm of all": by(OfAll),
}


def blocks(change: Change) -> Chain:
    torch.manual_seed(0)
    layers = [PreNorm() for _ in range(2)]
    for layer in layers:
        for linear in (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down):
            change(linear)
    return Chain(*layers).double()


def loss_and_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(stream().to(next(model.parameters()).dtype))
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CHANGES)
def test_a_part_is_the_whole_masked(name: str) -> None:
    plain = blocks(CHANGES[name])
    model = estfx.transform(copy.deepcopy(plain), PART, example_inputs=(stream().double(),), compile=False)
    for layer in model.report.layers:
        assert {axis.role: axis.size for axis in layer.axes} == {"heads": 5, "neurons": 56}
    model.set_step(0)
    got = loss_and_gradients(model)
    for number, layer in enumerate(plain.layers):
        units = model.subnetwork.units[f"layers.{number}"]
        for role, size, width, linear in (
            ("heads", 5, 8, layer.attention.out),
            ("neurons", 56, 1, layer.mlp.down),
        ):
            kept = torch.as_tensor(units[role])
            mask = torch.zeros(size, dtype=torch.float64).index_fill(0, kept, size / len(kept)).repeat_interleave(width)
            linear.register_forward_pre_hook(lambda _, given, mask=mask: (given[0] * mask,))
    want = loss_and_gradients(plain)
    assert got.keys() == want.keys()
    for each, value in want.items():
        torch.testing.assert_close(
            got[each], value, rtol=1e-9, atol=1e-10, msg=lambda said, each=each: f"{each}: {said}"
        )


def test_a_parametrization_that_changes_buffers_leaves_its_layer_whole() -> None:
    spectral = Residual()
    parametrizations.spectral_norm(spectral.up)
    model = estfx.transform(Chain(spectral, Residual()), PART, example_inputs=(stream(),), compile=False)
    first, second = model.report.layers
    assert "changes what the layer holds (`up.parametrizations.weight.0._u` at div" in first.notes[0]
    assert [axis.role for axis in second.axes] == ["neurons"]


class WrittenLater(nn.Module):
    """A computed weight that is changed in place after it was used once."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(56, HIDDEN) / 6)
        self.down = nn.Linear(56, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        weight = self.up / self.up.norm(dim=1, keepdim=True)
        first = x_BTD @ weight.T
        weight.data.mul_(2.0)
        return x_BTD + self.down((first + x_BTD @ weight.T).relu())


def test_a_weight_that_is_written_to_stays_whole() -> None:
    plain = Chain(WrittenLater(), WrittenLater())
    twin = copy.deepcopy(plain)
    report = estfx.inspect(plain, (stream(),))
    assert all(not layer.axes for layer in report.layers)
    assert loss_and_gradients(twin)["loss"].isfinite()
