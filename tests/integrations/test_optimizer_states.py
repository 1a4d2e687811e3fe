"""A state for each parameter before its first step, with which training goes on as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens

import estfx
from estfx.errors import EstfxError
from estfx.schedules.schedule import Schedule

GROWS = Schedule.growing(12, layers=0.5)  # half of the layers have no gradient until step 4
MADE = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
}


def trained(make: Any, initialises: int | None) -> Any:
    """The weights after a growing run, of which the states are initialised before that step."""
    model = estfx.transform(build("gpt2", num_hidden_layers=4), GROWS, compile=False).train()
    optimizer = make(model.parameters())
    for step in range(12):
        if step == initialises:
            before = {name: value.clone() for name, value in model.state_dict().items()}
            gradient = next(model.parameters()).grad
            number = estfx.initialise_optimizer(optimizer)
            assert number > 0
            assert estfx.initialise_optimizer(optimizer) == 0
            assert next(model.parameters()).grad is gradient
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.set_step(step)
        ids = tokens(batch=2, seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.sweep("name", days=2)
@pytest.mark.parametrize("name", MADE)
def test_training_goes_on_as_without_it(name: str) -> None:
    plain = trained(MADE[name], None)
    for step in (0, 2):
        for key, value in trained(MADE[name], step).items():
            assert torch.equal(value, plain[key]), key


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(EstfxError, match="LBFGS needs a closure"):
        estfx.initialise_optimizer(torch.optim.LBFGS(build("gpt2").parameters()))
