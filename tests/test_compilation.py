"""Compilations are kinds × stages, whatever the depth, and nothing compiles again."""

from __future__ import annotations

import pytest
import torch
from architectures import build, tokens
from torch._dynamo.utils import counters

import estfx
from estfx.schedule import Schedule, Stage

STAGES = Schedule(
    stages=[
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
        Stage(start=100, heads=0.5, neurons=0.5),
        Stage(start=190),
    ]
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_one_compilation_for_each_kind_and_width_over_200_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estfx.evolving, "BACKEND", "aot_eager")
    model = estfx.transform(build(name, **({"n_layer": 12} if name == "gpt2" else {"num_hidden_layers": 12})), STAGES)
    for step in range(200):
        model.set_step(step)
        ids = tokens(seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        want = 1 if step < 190 else 2  # the first two stages have the same widths
        assert compilations() == want, step


def test_compiled_programs_compute_what_uncompiled_ones_do() -> None:
    ids = tokens()
    results = []
    for compiled in (False, True):
        model = estfx.transform(build("llama_grouped"), STAGES, compile=compiled)
        for step in (3, 103, 193):
            model.set_step(step)
            model.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            results.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    for (loss, grads), (compiled_loss, compiled_grads) in zip(results[:3], results[3:], strict=True):
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        for name, grad in grads.items():
            assert (grad is None) == (compiled_grads[name] is None)
            if grad is not None:
                torch.testing.assert_close(compiled_grads[name], grad, rtol=1e-3, atol=1e-6)
