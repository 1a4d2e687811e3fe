"""Which calls a mounted layer knows as its own."""

from __future__ import annotations

from typing import Any

import pytest
from hand_written import Residual, Stack, stream

import estfx
from estfx.schedules import Schedule, Stage
from estfx.tracing import ATTRIBUTE


def test_a_layer_knows_its_own_calls_and_not_those_of_layers_whose_names_begin_likewise() -> None:
    model: Any = Stack(*(Residual() for _ in range(12)))
    schedule = Schedule(stages=[Stage(start=0, layers=0.5)])
    estfx.transform(model, schedule, example_inputs=(stream(),), compile=False, verify=False)
    for number, layer in enumerate(model.layers):
        assert [call.name for call in vars(layer)[ATTRIBUTE].calls] == [f"layers.{number}"]
    model.set_step(0)
    one = model.layers[1]
    with model._runtime.one_forward():
        one(stream())
        with pytest.raises(estfx.EstfxError, match=r"layer `layers\.1` is called 2 times in one forward"):
            one(stream())
