"""What followers of a model's steps are told, and when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens
from torch import nn
from torch.optim import Optimizer

import estfx
from estfx.runtime.follower import Follower, StepChange, StepState
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2)])


class Noting(Follower):
    """Writes down what it is told."""

    watches_optimizers = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Any, ...]] = []

    def before_step(self, step: int, state: StepState | None, model: nn.Module, device: torch.device) -> bool:
        self.told.append(("before step", step, None if state is None else state.step))
        return False

    def step_set(self, change: StepChange) -> None:
        before = None if change.before is None else change.before.step
        self.told.append(("set", change.now.step, before, change.is_new_part, change.in_training))

    def before_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        self.told.append(("before optimizer", state.step))

    def after_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        self.told.append(("after optimizer", state.step))


@pytest.fixture
def followed() -> tuple[Any, Noting]:
    model: Any = estfx.transform(build("gpt2"), SCHEDULE, compile=False)
    noting = Noting()
    model._runtime.followers = (*model._runtime.followers, noting)
    return model, noting


def test_a_follower_is_told_at_four_moments(followed: tuple[Any, Noting]) -> None:
    model, noting = followed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (0, 0, 1, 2):
        model.set_step(step)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert noting.told == [
        ("before step", 0, None),
        ("set", 0, None, False, False),
        ("set", 0, 0, False, False),  # it was in force: nothing is drawn
        ("before step", 1, 0),
        ("set", 1, 0, False, True),
        ("before step", 2, 1),
        ("set", 2, 1, True, True),
        ("before optimizer", 2),
        ("after optimizer", 2),
    ]


def test_a_copy_of_the_model_has_followers_of_its_own(followed: tuple[Any, Noting]) -> None:
    model, _ = followed
    twin = copy.deepcopy(model)
    twin.set_step(0)
    assert {id(each) for each in twin._runtime.followers}.isdisjoint(map(id, model._runtime.followers))
    assert model.step is None


def test_what_a_follower_invalidates_is_drawn_anew(followed: tuple[Any, Noting]) -> None:
    model, _ = followed
    model.set_step(1)
    model.selection.load_state_dict(model.selection.state_dict())
    assert model.step == 1  # the policy ranks nothing, so nothing has changed
    model._runtime.followers[0].invalidate()
    assert model.step is None
    assert model.stage_index == 0
    with pytest.raises(estfx.EstfxError, match="no step was set"):
        model(input_ids=tokens())


def test_a_subnetwork_answers_for_its_own_step(followed: tuple[Any, Noting]) -> None:
    model, _ = followed
    model.set_step(0)
    subnetwork = model.subnetwork
    before = as_lists(subnetwork.parameters())
    model.set_step(1)
    assert as_lists(subnetwork.parameters()) == before
    assert as_lists(model.subnetwork.parameters()) != before


def as_lists(parameters: dict[str, dict[int, torch.Tensor]]) -> dict[str, dict[int, list[int]]]:
    return {name: {dim: index.tolist() for dim, index in dims.items()} for name, dims in parameters.items()}
