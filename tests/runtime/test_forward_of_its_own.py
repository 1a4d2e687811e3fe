"""Layers with a `forward` of their own, set on the instance: it is what runs, or it is refused."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Chain, Mlp
from torch import nn

import estfx
from estfx.schedules import Schedule, Stage

HALF = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=10)])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD)


def stream() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))


def twice(layer: Any, x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD + 2 * layer.mlp(x_BTD)


def patched() -> Chain:
    model = Chain(Layer(), Layer())
    model.layers[1].forward = functools.partial(twice, model.layers[1])
    return model


def losses(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(stream())
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_one_that_was_there_before_is_traced() -> None:
    original = patched()
    twin = copy.deepcopy(original)
    twin.layers[1].forward = functools.partial(twice, twin.layers[1])
    model = estfx.transform(original, HALF, example_inputs=(stream(),), compile=False)
    assert len({layer.program for layer in model.report.layers}) == 2
    model.set_step(10)
    for one, other in zip(losses(model), losses(twin), strict=True):
        assert torch.equal(one, other)
    model.set_step(0)
    part = losses(model)[0]
    assert not torch.equal(part, losses(twin)[0])
    model.eval()
    assert torch.equal(model(stream()), twin(stream()))
    estfx.restore(model)
    assert isinstance(vars(model.layers[1])["forward"], functools.partial)
    assert "forward" not in vars(model.layers[0])


def test_one_that_is_set_later_and_calls_the_one_before_is_run() -> None:
    model = estfx.transform(Chain(Layer(), Layer()), HALF, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    before, seen = model.layers[0].forward, []

    def noting(*args: Any) -> Any:
        seen.append(1)
        return before(*args)

    want = losses(model)[0]
    model.layers[0].forward = noting
    assert torch.equal(losses(model)[0], want)
    assert seen == [1]


def test_one_that_is_set_later_and_does_not_is_refused() -> None:
    model = estfx.transform(Chain(Layer(), Layer()), HALF, example_inputs=(stream(),), compile=False)
    model.layers[1].forward = functools.partial(twice, model.layers[1])
    model.set_step(0)
    with pytest.raises(estfx.EstfxError, match=r"`layers.1` was given another `forward` after transform.*restore"):
        model(stream())


class TellsOfSubclasses(Layer):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclass, please")


def test_a_class_that_wants_no_subclasses() -> None:
    model = estfx.transform(Chain(TellsOfSubclasses()), HALF, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    losses(model)
    assert type(model.layers[0]).__name__ == "TellsOfSubclasses"
    assert type(estfx.restore(model).layers[0]) is TellsOfSubclasses


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_transform_is_all_or_nothing(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it, and wherever: the model is as it was, and can be transformed."""
    calls = 0
    own = estfx.runtime.layer_mount.Mount.look

    def ends(self: Any, layer: nn.Module) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error("stop")
        own(self, layer)

    model = Chain(Layer(), Layer(), Layer())
    want = losses(model)[0]
    with monkeypatch.context() as patch:
        patch.setattr("estfx.runtime.layer_mount.Mount.look", ends)
        with pytest.raises(error):
            estfx.transform(model, HALF, example_inputs=(stream(),), compile=False)
    assert type(model) is Chain
    assert [type(layer) for layer in model.layers] == [Layer] * 3
    assert not any("_estfx" in vars(module) for module in model.modules())
    assert torch.equal(losses(model)[0], want)
    assert estfx.transform(model, HALF, example_inputs=(stream(),), compile=False) is model
