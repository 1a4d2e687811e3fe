"""Which positions along a weight belong to each unit, and to that unit alone."""

from __future__ import annotations

import torch

from estfx.graphs import Axis, Product, Sum
from estfx.runtime.unit_weights import unit_positions

HEADS, WIDTH, NEURONS = Axis(0, 5), Axis(1, 4), Axis(2, 7)


def test_positions_of_a_unit_are_those_of_no_other() -> None:
    fused = Sum((Product((HEADS, WIDTH)), NEURONS))  # as in one of the forms of PaLM
    assert torch.equal(unit_positions(fused, HEADS), torch.arange(20).view(5, 4))
    assert torch.equal(unit_positions(fused, NEURONS), torch.arange(20, 27)[:, None])
    three = Product((Axis(3, 2), Sum((HEADS, HEADS))))
    assert torch.equal(unit_positions(three, HEADS), torch.arange(20).view(4, 5).T)
