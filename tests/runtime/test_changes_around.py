"""What code read when it was traced, and is another now: the layer is traced anew, or it is refused."""

from __future__ import annotations

import copy
import enum
import functools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Mlp
from tiny_decoders import build, tokens
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.schedules import Schedule, Stage
from estfx.tracing.effects import frozen

HALF = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=10)])
FACTOR = 1.0
TABLE = {"factor": 1.0, "inner": {"shift": 0.0}}


class Form(enum.Enum):
    GELU = "gelu"
    RELU = "relu"


def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


class Config:
    def __init__(self) -> None:
        self.scale = 1.0
        self.form = Form.GELU
        self.scalings = {"out": [1.0, 2.0]}
        self.function = F.gelu
        self.then = functools.partial(scaled, by=1.0)
        self.never_read = 0
        self.nested = SimpleNamespace(shift=0.0)


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.mlp = Mlp()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        config = self.config
        y = self.mlp(x_BTD) * config.scale * FACTOR * TABLE["factor"] + TABLE["inner"]["shift"]
        y = config.function(y) if config.form is Form.GELU else F.relu(y)
        return x_BTD + config.then(y) * config.scalings["out"][0] + config.nested.shift


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(2))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD.square().mean()


def stream() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))


CHANGES: dict[str, Callable[[Chain], Any]] = {
    "value": lambda m: setattr(m.config, "scale", 3.0),
    "enum": lambda m: setattr(m.config, "form", Form.RELU),
    "function": lambda m: setattr(m.config, "function", torch.tanh),
    "partial": lambda m: setattr(m.config, "then", functools.partial(scaled, by=0.5)),
    "nested list": lambda m: m.config.scalings["out"].__setitem__(0, 0.25),
    "nested dict": lambda m: m.config.scalings.update(out=[5.0]),
    "nested object": lambda m: setattr(m.config.nested, "shift", 1.0),
    "replaced config": lambda m: [setattr(layer, "config", other(m)) for layer in m.layers],
}


def other(model: Chain) -> Config:
    made = getattr(model, "made", None) or Config()
    model.made = made
    made.scale = -2.0
    return made


def evolving() -> tuple[Any, Chain]:
    original = Chain()
    twin = copy.deepcopy(original)
    return estfx.transform(original, HALF, example_inputs=(stream(),), compile=False), twin


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_at_the_next_step(change: str, caplog: pytest.LogCaptureFixture) -> None:
    model, twin = evolving()
    model.set_step(10)
    assert torch.equal(model(stream()), twin(stream()))
    before = twin(stream())
    for each in (model, twin):
        CHANGES[change](each)
    with caplog.at_level(logging.INFO, logger="estfx"):
        model.set_step(11)
        assert torch.equal(model(stream()), twin(stream()))
    assert not torch.equal(before, twin(stream()))
    assert "tracing Layer anew, since it was changed" in caplog.text


@pytest.mark.parametrize("name", ["FACTOR", "TABLE", "inner"])
def test_globals_are_looked_at_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = evolving()
    model.set_step(10)
    assert torch.equal(model(stream()), twin(stream()))
    before = twin(stream())
    if name == "FACTOR":
        monkeypatch.setitem(globals(), "FACTOR", 2.0)
    elif name == "TABLE":
        monkeypatch.setitem(TABLE, "factor", 2.0)
    else:
        monkeypatch.setitem(TABLE["inner"], "shift", 0.5)  # type: ignore[arg-type]
    model.set_step(11)
    assert torch.equal(model(stream()), twin(stream()))
    assert not torch.equal(before, twin(stream()))
    monkeypatch.undo()
    model.set_step(12)
    assert torch.equal(model(stream()), before)


def test_what_no_layer_reads_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = evolving()
    llama = estfx.transform(build("llama"), HALF, compile=False)
    with caplog.at_level(logging.INFO, logger="estfx"):
        model.config.never_read = 5
        llama.config.use_cache = not llama.config.use_cache
        llama.config.name_or_path = "elsewhere"
        for step in (10, 11):
            model.set_step(step)
            model(stream())
            llama.set_step(step)
            llama(tokens())
    assert "tracing" not in caplog.text


def test_a_copy_looks_at_its_own() -> None:
    model, twin = evolving()
    model.set_step(10)
    made = copy.deepcopy(model)
    made.config.scale = 3.0
    twin.config.scale = 3.0
    for each in (made, model):
        each.set_step(11)
    assert torch.equal(made(stream()), twin(stream()))
    twin.config.scale = 1.0
    assert torch.equal(model(stream()), twin(stream()))


def test_a_hook_inside_of_a_layer_that_changes_the_result_is_run() -> None:
    model, twin = evolving()
    model.set_step(10)
    model(stream())
    for each in (model, twin):
        for layer in each.layers:
            layer.mlp.register_forward_hook(lambda module, args, out: out * 0.5)
    model.set_step(11)
    assert torch.equal(model(stream()), twin(stream()))


def test_a_hook_inside_of_a_layer_that_keeps_something_leaves_it_whole() -> None:
    original = Chain()
    seen: list[torch.Tensor] = []
    original.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    model: Any = estfx.transform(original, HALF, example_inputs=(stream(),), compile=False)
    assert seen == []
    assert [bool(layer.program) for layer in model.report.layers] == [False, True]
    assert "a call runs a hook on mlp, which keeps something" in model.report.layers[0].notes[0]
    model.set_step(0)
    model(stream())
    assert len(seen) == 1


def test_one_that_is_put_there_later_is_refused_by_name() -> None:
    model, _ = evolving()
    model.set_step(0)
    model(stream())
    seen: list[torch.Tensor] = []
    model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    model.set_step(1)
    with pytest.raises(estfx.EstfxError, match=r"runs a hook on mlp, which keeps something"):
        model(stream())
    assert seen == []


def test_what_is_true_is_not_one() -> None:
    values = [1, True, 1.0, 0, False, 0.0, "1", torch.ones(1), torch.ones(2)]
    assert len({frozen(value) for value in values}) == len(values)
    assert frozen(2) == frozen(2)
