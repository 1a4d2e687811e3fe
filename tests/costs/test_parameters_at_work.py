"""Plans of models that call a layer more than once, or whose layers share parameters."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign_decoders import Universal
from hand_written import VOCABULARY
from torch import nn

import estfx
from estfx.costs.parameters_at_work import CallAtWork, chance_to_run, parameters_at_work
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10, heads=0.4), Stage(start=20)],
    total_steps=30,
)


class Planned(Universal):
    def __init__(self, layers: int, rounds: int) -> None:
        super().__init__(layers, rounds)
        self.config = type("Config", (), {"vocab_size": VOCABULARY})

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids)


def test_a_plan_counts_each_call_and_each_parameter_once() -> None:
    one = estfx.plan(Planned(2, 1), SCHEDULE, batch_size=2, seq_len=16)
    three = estfx.plan(Planned(2, 3), SCHEDULE, batch_size=2, seq_len=16)
    assert three.whole.flops_layers == 3 * one.whole.flops_layers
    assert three.whole.parameters == sum(p.numel() for p in Planned(2, 3).parameters())
    assert three.stages[1].flops_layers == 3 * one.stages[1].flops_layers
    assert three.stages[1].parameters == one.stages[1].parameters
    # three of six calls run: a layer is left out when all three are the other's, once in twenty draws
    around = sum(p.numel() for n, p in Planned(2, 1).named_parameters() if not n.startswith("layers."))
    assert (three.stages[0].parameters - around) / (one.stages[0].parameters - around) == pytest.approx(0.95 / 0.5)


def test_tied_parameters_are_planned_once() -> None:
    class Tied(Planned):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.layers[1].mlp.up.weight = self.layers[0].mlp.up.weight

    found = estfx.plan(Tied(), SCHEDULE, batch_size=2, seq_len=16)
    assert found.whole.parameters == sum(p.numel() for p in Tied().parameters())
    assert found.stages[0].parameters < found.stages[1].parameters < found.whole.parameters


def test_of_a_parameter_that_modules_share_each_takes_a_part_by_itself() -> None:
    shared, own = nn.Linear(10, 10, bias=False), nn.Linear(10, 4, bias=False)
    calls: list[Any] = [SimpleNamespace(path=path, module=shared) for path in ("a", "b")]
    each = [CallAtWork(call, False, {"weight": 50}) for call in calls]
    each.append(CallAtWork(SimpleNamespace(path="c", module=own), False, {"weight": 30}))  # type: ignore[arg-type]
    assert parameters_at_work(each, 0) == 75 + 30
    some = [CallAtWork(call, True, {"weight": 50}) for call in calls]
    assert parameters_at_work(some, 1) == 100 * (1 - 0.75**2)  # each runs in half of the draws


@pytest.mark.parametrize(("calls", "kept", "total"), [(1, 3, 6), (2, 3, 6), (3, 3, 6), (6, 3, 6), (2, 6, 6)])
def test_the_chance_to_run_is_counted_over_all_draws(calls: int, kept: int, total: int) -> None:
    draws = list(combinations(range(total), kept))
    assert chance_to_run(calls, kept, total) == sum(min(draw) < calls for draw in draws) / len(draws)
