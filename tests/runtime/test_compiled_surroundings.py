"""What lies around the layers is compiled while the model trains, once for all stages, and otherwise as it was."""

from __future__ import annotations

import copy
import logging
from typing import Any

import hand_written
import pytest
import torch
from hand_written import HIDDEN, PreNorm
from tiny_decoders import build, tokens
from torch import nn
from torch._dynamo.utils import counters

import estfx
from estfx.programs import Compiler, compilation
from estfx.runtime.compiled_surroundings import ATTRIBUTE
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STAGES = Schedule(
    stages=[
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
        Stage(start=10, heads=0.5, neurons=0.5),
        Stage(start=20),
    ]
)
IDS = {"example_inputs": (tokens(),)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


class Scaled(nn.Module):
    """A norm of several operations, or whatever else stands in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class Printing(Scaled):
    """torch.compile cannot make one graph of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)


def decoder(norm: nn.Module) -> Any:
    torch.manual_seed(0)
    model = hand_written.Decoder(PreNorm(), PreNorm())
    model.norm = norm
    return model.train()


def compiled_outside(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if ATTRIBUTE in vars(module)]


def trained(model: Any, step: int, seed: int = 0, **shape: int) -> torch.Tensor:
    model.set_step(step)
    loss: torch.Tensor = model(tokens(seed=seed, **shape)).square().mean()
    loss.backward()
    return loss


def test_what_has_several_operations_is_compiled() -> None:
    model = decoder(nn.Sequential(Scaled(), nn.Dropout(0.0)))
    model.head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 7))
    model.other = hand_written.Stack(Scaled(), Scaled())  # that would take long to compile
    model.silent = nn.Sequential(nn.Dropout(0.0), nn.ReLU())  # no parameters
    assert compiled_outside(estfx.transform(model, STAGES, **IDS)) == ["norm", "head"]
    assert compiled_outside(estfx.restore(model)) == []
    assert compiled_outside(estfx.transform(model, STAGES, compile_outside=False, **IDS)) == []
    assert compiled_outside(estfx.transform(decoder(Scaled()), STAGES, compile=False, **IDS)) == []


def test_a_module_that_layers_share_with_the_outside_is_the_layers() -> None:
    model = decoder(norm := Scaled())
    for layer in model.layers:
        layer.norm_1 = norm
    assert compiled_outside(estfx.transform(model, STAGES, **IDS)) == []


@pytest.mark.sweep("name", days=3)
@pytest.mark.parametrize("name", ["llama_grouped", "gemma2", "opt"])
def test_it_is_compiled_once_and_computes_the_same(name: str) -> None:
    ids = tokens()
    plain, model = (estfx.transform(build(name), STAGES, compile_outside=own) for own in (False, True))
    found = compiled_outside(model)
    assert found
    results = []
    for each in (plain, model):
        for step in (0, 1, 10, 11, 20):
            each.zero_grad()
            each.set_step(step)
            loss = each(input_ids=ids, labels=ids).loss
            loss.backward()
            results.append((loss, {path: p.grad for path, p in each.named_parameters()}))
            kinds = {type(each.get_submodule(path)) for path in found}
            assert len(each._runtime.compiler._functions) == (1 + len(kinds) if each is model else 0)
    for (loss, grads), (want, wanted) in zip(results[5:], results[:5], strict=True):
        torch.testing.assert_close(loss, want)
        assert {path for path, grad in grads.items() if grad is None} == {p for p, g in wanted.items() if g is None}
        torch.testing.assert_close(
            [g for g in grads.values() if g is not None], [g for g in wanted.values() if g is not None]
        )
    made = counters["stats"]["unique_graphs"]
    for step in (2, 12, 21):
        model.set_step(step)
        model(input_ids=ids, labels=ids).loss.backward()
    assert counters["stats"]["unique_graphs"] == made


def test_eval_is_the_original_and_a_copy_is_on_its_own() -> None:
    model = estfx.transform(decoder(Scaled()), STAGES, **IDS)
    trained(model, 0)
    made = counters["stats"]["unique_graphs"]
    want = decoder(Scaled()).eval()(tokens())
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(tokens()), want)
    assert torch.equal(model.eval()(tokens()), want)
    assert counters["stats"]["unique_graphs"] == made
    assert compiled_outside(estfx.restore(twin)) == []
    assert type(twin.norm) is Scaled is not type(model.norm)
    trained(model.train(), 1)


def test_in_eval_mode_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = estfx.transform(build("llama"), Schedule(stages=[Stage(start=0, neurons=0.5)]), verify=False)
    asked: list[str] = []
    own = Compiler.outer_function
    monkeypatch.setattr(
        Compiler, "outer_function", lambda self, function, what: asked.append(what) or own(self, function, what)
    )
    model.eval()(tokens(), labels=tokens())
    assert asked == []


@pytest.mark.sweep(day=0, days=2)
def test_what_torch_compile_does_not_take_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(decoder(Printing()), STAGES, **IDS)
    plain = estfx.transform(decoder(Scaled()), STAGES, compile_outside=False, **IDS)
    for step in (0, 1, 20):
        assert trained(model, step) == trained(plain, step)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("the module Printing runs as it is, uncompiled, since torch.compile does not take it: ")


@pytest.mark.sweep(day=1, days=2)
def test_a_recompilation_is_told_once_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(decoder(Scaled()), STAGES, **IDS)
    with caplog.at_level(logging.WARNING):
        for length in (12, 20, 24, 12):
            trained(model, 0, length=length)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("the module Scaled")]
    assert said == [
        "the module Scaled was compiled again: `x` is float32[2, 20, 40] on cpu with gradient, "
        "was float32[2, 12, 40] on cpu with gradient"
    ]


def test_restoring_what_something_else_has_changed_since_is_refused() -> None:
    model = estfx.transform(decoder(Scaled()), STAGES, **IDS)
    model.norm.__class__ = type("Scaled", (type(model.norm),), {})
    with pytest.raises(estfx.EstfxError, match="changed again after transform"):
        estfx.restore(model)
