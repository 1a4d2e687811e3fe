"""Layers whose graph is made for one length: what they cost at another."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hand_written import HIDDEN, NEURONS, VOCABULARY, Attention, Decoder, PreNorm
from torch import nn

import estfx
from estfx.costs.layer_costs import _through
from estfx.schedules import Schedule, Stage

INNER = 24


class Recurrent(nn.Module):
    """A recurrence that runs step by step, beside attention, whose cost grows with the square of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.into, self.out = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        given_BTN = self.into(x_BTD)
        states = [given_BTN[:, 0]]
        for t in range(1, x_BTD.shape[1]):
            states.append(states[-1].tanh() + given_BTN[:, t])
        return self.out(torch.stack(states, 1)) + self.attention(x_BTD)


@pytest.mark.sweep(day=1, days=2)
def test_a_recurrence_beside_attention_costs_what_its_matrices_do() -> None:
    batch, length = 3, 50
    schedule = Schedule(stages=[Stage(start=0)], total_steps=4)
    ids = torch.randint(VOCABULARY, (2, 9))
    model = Decoder(PreNorm(Recurrent()))
    found = estfx.plan(model, schedule, batch_size=batch, seq_len=length, example_inputs=(ids,))
    matrices = HIDDEN * (4 * HIDDEN + 2 * INNER + 2 * NEURONS)
    a_token = 2 * (matrices + 2 * length * HIDDEN)
    assert found.whole.flops_layers == 3 * batch * length * a_token


def test_a_parabola_goes_through_its_points() -> None:
    places = (7, 11, 15)
    values = [Fraction(3 * x * x - 5 * x + 2) for x in places]
    assert [_through(places, values, x) for x in (7, 15, 50)] == [3 * x * x - 5 * x + 2 for x in (7, 15, 50)]
