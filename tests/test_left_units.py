"""What a layer leaves beside its result, made of units: units that do not run are zeros in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, NEURONS, Mlp
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.errors import UnsupportedModelError
from estfx.schedules import Schedule, Stage

HALF = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=10)])
FEWER = Schedule(stages=[Stage(start=0, layers=0.7), Stage(start=10)])
PLACE = "what it leaves in `mlp.features` (neurons) has zeros for units that do not run"


class Recorded(Mlp):
    """Keeps its neurons, as one does to look at them, or to go on from them."""

    features: torch.Tensor | None = None

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.features = F.gelu(self.up(x_BTD))
        return self.down(self.features)


class Merged(Recorded):
    """With batch, length and groups of neurons in one dimension."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        inner = F.gelu(self.up(x_BTD))
        self.features = inner.view(batch, length, 4, -1).transpose(0, 3).reshape(-1, length, 4, batch).flatten(0, 1)
        return self.down(inner)


class Layer(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD)


class Decoder(nn.Module):
    """With `reads`, each layer is given what the one before has left."""

    def __init__(self, reads: bool = False, mlp: type[nn.Module] = Recorded) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(mlp()) for _ in range(3))
        self.reads = reads

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
            if self.reads:
                x_BTD = x_BTD + layer.mlp.features.mean()
        return x_BTD


def stream() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))


def transformed(schedule: Schedule, **options: Any) -> Any:
    torch.manual_seed(0)
    return estfx.transform(Decoder(**options), schedule, example_inputs=(stream(),), compile=False)


def test_units_that_do_not_run_leave_zeros() -> None:
    model = transformed(HALF)
    layer = model.layers[0]
    whole = copy.deepcopy(estfx.restore(copy.deepcopy(model))).layers[0]
    assert model.report.layers[0].notes == [PLACE]
    model.set_step(0)
    model(stream())
    whole(stream())
    kept = model.subnetwork.units["layers.0"]["neurons"].tolist()
    assert 0 < len(kept) < NEURONS
    dropped = [i for i in range(NEURONS) if i not in set(kept)]
    assert layer.mlp.features.shape == (2, 5, NEURONS)
    assert torch.allclose(layer.mlp.features[..., kept], whole.mlp.features[..., kept], atol=1e-6)
    assert not layer.mlp.features[..., dropped].any()


def test_a_loss_of_it_reaches_the_units_that_ran_and_no_others() -> None:
    model = transformed(HALF)
    model.set_step(0)
    model(stream())
    features = model.layers[2].mlp.features
    features.square().sum().backward()
    reached = model.layers[2].mlp.up.bias.grad.nonzero().flatten().tolist()
    assert reached == model.subnetwork.units["layers.2"]["neurons"].tolist()


def test_a_layer_that_is_passed_over_leaves_zeros_only() -> None:
    model = transformed(FEWER)
    assert all(layer.droppable for layer in model.report.layers)
    model.set_step(0)
    model(stream())
    (skipped,) = (model.get_submodule(name) for name, runs in model.subnetwork.layers.items() if not runs)
    assert skipped.mlp.features.shape == (2, 5, NEURONS)
    assert not skipped.mlp.features.any()
    model(stream()[:, :3])
    assert skipped.mlp.features.shape == (2, 3, NEURONS)


def test_what_the_model_reads_has_all_its_units() -> None:
    with pytest.raises(UnsupportedModelError, match="56 that closes into the stream stays whole: it leaves the layer"):
        transformed(HALF, reads=True)


def test_a_layer_of_which_the_model_reads_it_is_another_kind() -> None:
    class ReadsTheLast(Decoder):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().forward(x_BTD) * self.layers[2].mlp.features.mean()

    model: Any = estfx.transform(ReadsTheLast(), HALF, example_inputs=(stream(),), compile=False)
    assert [layer.program for layer in model.report.layers] == ["Layer", "Layer", "Layer_2"]
    assert [len(layer.axes) for layer in model.report.layers] == [1, 1, 0]


def test_units_inside_of_a_dimension_with_others_leave_zeros_too() -> None:
    model = transformed(HALF, mlp=Merged)
    model.set_step(0)
    model(stream())
    features = model.layers[0].mlp.features
    assert features.shape == (NEURONS // 4 * 5, 4, 2)
