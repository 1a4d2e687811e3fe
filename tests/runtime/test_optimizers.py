"""What optimizers do with what a step leaves out: skipped layers stay, dropped units take a step on gradients of 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=50)])


class EightBit(torch.optim.Optimizer):
    """Momentum kept as whole numbers from -127 to 127 and a scale, and read off `.grad`, as 8-bit optimizers do it."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["whole"] = torch.zeros_like(p, dtype=torch.int8)
                    state["scale"] = torch.ones(())
                momentum = 0.9 * state["whole"].to(p.dtype) * state["scale"] + p.grad
                state["scale"] = momentum.abs().max().clamp(min=1e-12) / 127
                state["whole"] = (momentum / state["scale"]).round().to(torch.int8)
                p.sub_(momentum, alpha=group["lr"])


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw, foreach": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw, fused": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, fused=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2, weight_decay=0.1),
    "schedule-free": lambda params: schedulefree.AdamWScheduleFree(params, lr=1e-2, weight_decay=0.1),
    "eight bits": EightBit,
}


def evolving() -> Any:
    return estfx.transform(build("gpt2", n_layer=4), SCHEDULE, compile=False)


def backward(model: Any, step: int) -> None:
    ids = tokens(seed=step)
    model.set_step(step)
    model(input_ids=ids, labels=ids).loss.backward()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clipping", [True, False, None])
def test_skipped_layers_are_left_alone(name: str, clipping: bool | None) -> None:
    model = evolving()
    optimizer = OPTIMIZERS[name](model.parameters())
    if name == "schedule-free":
        optimizer.train()
    for step in range(4):
        backward(model, step)
        skipped = tuple(layer for layer, runs in model.subnetwork.layers.items() if not runs)
        assert len(skipped) == 2
        before = copies(model)
        states = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}
        if clipping is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=clipping)
            assert norm.isfinite()
        optimizer.step()
        for path, parameter in model.named_parameters():
            if path.startswith(skipped):
                assert parameter.grad is None
                assert torch.equal(parameter, before[path])
                old, new = states.get(parameter, {}), optimizer.state.get(parameter, {})
                assert old.keys() == new.keys()
                assert all(torch.equal(torch.as_tensor(old[key]), torch.as_tensor(new[key])) for key in old)
            else:
                assert not torch.equal(parameter, before[path]), path
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw, foreach", "adamw, fused", "sgd"])
def test_dropped_units_take_a_step_on_gradients_of_zero(name: str) -> None:
    """Momentum goes on and weights decay, as in a whole model whose gradient happens to be 0."""
    model = evolving()
    twin = copy.deepcopy(model)
    optimizer, theirs = (OPTIMIZERS[name](each.parameters()) for each in (model, twin))
    for step in range(4):
        backward(model, step)
        narrowed = model.subnetwork.parameters()
        for (path, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            other.grad = None if own.grad is None else own.grad.clone()
            for dim, kept in narrowed.get(path, {}).items() if own.grad is not None else ():
                dropped = [i for i in range(own.shape[dim]) if i not in set(kept.tolist())]
                assert not own.grad.index_select(dim, torch.tensor(dropped)).any()
                other.grad.index_fill_(dim, torch.tensor(dropped), 0.0)
        for each in (optimizer, theirs):
            each.step()
            each.zero_grad()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
    momentum = "momentum_buffer" if name == "sgd" else "exp_avg"
    layers = [layer.mlp.c_fc.weight for layer in model.transformer.h]
    moved = [optimizer.state[w][momentum].any(dim=0).sum() for w in layers if w in optimizer.state]
    assert max(moved) > layers[0].shape[1] // 2  # of more than one step's draw


def test_float16_with_a_scaled_loss() -> None:
    """Also a step that the scaler skips, since the loss overflows."""
    model = evolving()
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu", init_scale=2.0**30)
    ids = tokens()
    losses, scales = [], []
    for step in range(30):
        model.set_step(step)
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    assert scales[0] == 2.0**29  # halved after an overflow
    assert 1 < scales[-1] < 2.0**29
    assert losses[-1] < losses[0] - 1
