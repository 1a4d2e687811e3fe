"""Running averages of an evolving model's weights, in a copy of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import estfx
from estfx.errors import EstfxError
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2, heads=0.5, neurons=0.5), Stage(start=4)]
)
DECAY = 0.9


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens()).logits
    return found


@pytest.mark.parametrize("before_the_first_step", [True, False])
def test_they_are_those_by_hand_and_are_evaluated_whole(before_the_first_step: bool) -> None:
    model: Any = estfx.transform(build("gpt2", n_layer=4), SCHEDULE, compile=False)
    if not before_the_first_step:
        model.set_step(0)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    by_hand: dict[str, torch.Tensor] = {}
    for step in range(6):
        model.set_step(step)
        ids = tokens(seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        now = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        by_hand = {n: DECAY * by_hand[n] + (1 - DECAY) * p for n, p in now.items()} if by_hand else now
        plain = build("gpt2", n_layer=4).eval()
        plain.load_state_dict(averaged.module.state_dict())
        assert torch.equal(logits(averaged.eval()), logits(plain))  # the whole model, whatever part is in training
        assert model.training
        assert model.step == step
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter, by_hand[name], rtol=0, atol=1e-6)
    assert type(estfx.restore(averaged.module)) is type(build("gpt2"))


@pytest.mark.parametrize("copied", [AveragedModel, copy.deepcopy])
def test_a_copy_is_not_told_of_the_steps_of_the_original(copied: Any) -> None:
    model: Any = estfx.transform(build("gpt2"), SCHEDULE, compile=False)
    twin = copied(model).train()
    model.set_step(1)
    with pytest.raises(EstfxError, match=r"no step was set.*A copy has steps of its own: call eval\(\) on one"):
        twin(tokens())
    estfx.evolving_within(twin).set_step(0)  # to train the copy
    twin(tokens())
    assert model.step == 1
