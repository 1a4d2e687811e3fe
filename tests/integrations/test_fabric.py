"""A loop of one's own with Fabric, in the form of LitGPT's: accumulation, clipping, torch.compile, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from differences import largest_difference
from lightning.fabric import Fabric
from tiny_decoders import VOCABULARY, build, tokens
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore")  # of the machine
STEPS = 6
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2, heads=0.5, neurons=0.5), Stage(start=4)],
    total_steps=STEPS,
)
ACCUMULATION = 2


def evolving() -> Any:
    model = build("llama_grouped", num_hidden_layers=4)
    return estfx.transform(model, SCHEDULE, compile=False, verify=False).train()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def loss_of(model: Any, step: int, micro: int) -> torch.Tensor:
    ids = tokens(batch=2, seed=step * ACCUMULATION + micro)
    logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1)) / ACCUMULATION


@pytest.fixture(scope="module")
def by_hand() -> tuple[list[float], dict[str, torch.Tensor]]:
    model = evolving()
    optimizer, losses = adam(model), []
    for step in range(STEPS):
        model.set_step(step)
        for micro in range(ACCUMULATION):
            loss = loss_of(model, step, micro)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def train(fabric: Any, model: Any, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        model.set_step(step)  # through Fabric's wrapper, and torch.compile's
        for micro in range(ACCUMULATION):
            with fabric.no_backward_sync(model, enabled=micro < ACCUMULATION - 1):
                loss = loss_of(model, step, micro)
                fabric.backward(loss)
            losses.append(loss.item())
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def set_up(compiled: bool) -> Any:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    model = evolving()
    if compiled:  # which Fabric takes off, and puts around what it has set up
        torch._dynamo.reset()
        model = torch.compile(model, backend="eager")
    model = fabric.setup(model)
    return fabric, model, fabric.setup_optimizers(adam(model))


@pytest.mark.sweep("compiled", days=2)
@pytest.mark.parametrize("compiled", [False, True])
def test_losses_are_those_of_a_loop_by_hand(compiled: bool, by_hand: Any, caplog: pytest.LogCaptureFixture) -> None:
    fabric, model, optimizer = set_up(compiled)
    with caplog.at_level("INFO", logger="estfx"):
        losses = train(fabric, model, optimizer, range(STEPS))
    assert largest_difference(losses, by_hand[0]) < (2e-6 if compiled else 1e-12)
    assert "since it was changed" not in caplog.text  # by the hooks that Fabric sets while set_step is called


def test_a_resumed_run_ends_with_the_same_weights_and_plain_transformers_loads_them(
    by_hand: Any, tmp_path: Path
) -> None:
    fabric, model, optimizer = set_up(compiled=False)
    train(fabric, model, optimizer, range(3))
    fabric.save(tmp_path / "lit_model.pth", {"model": model, "optimizer": optimizer, "step": 3})
    fabric, model, optimizer = set_up(compiled=False)
    state = {"model": model, "optimizer": optimizer, "step": 0}
    fabric.load(tmp_path / "lit_model.pth", state)
    losses = train(fabric, model, optimizer, range(state["step"], STEPS))
    assert losses == by_hand[0][3 * ACCUMULATION :]
    assert all(torch.equal(parameter, by_hand[1][name]) for name, parameter in model.module.named_parameters())
    fabric.save(tmp_path / "end.pth", {"model": model})
    plain = build("llama_grouped", num_hidden_layers=4)
    plain.load_state_dict(torch.load(tmp_path / "end.pth")["model"])
    assert all(torch.equal(parameter, by_hand[1][name]) for name, parameter in plain.named_parameters())
