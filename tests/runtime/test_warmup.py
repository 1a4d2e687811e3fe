"""A warm-up leaves the step in force as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens

import estfx
from estfx.schedules import Schedule, Stage

NARROW = {"heads": 0.5, "neurons": 0.5, "layers": 0.67}
GROWING = [Stage(start=0, **NARROW), Stage(start=5, neurons=0.5), Stage(start=10)]


@pytest.mark.parametrize("stages", [GROWING, GROWING[:1]], ids=["growing", "constant"])
def test_after_a_warm_up_the_step_in_force_runs_what_it_did(stages: list[Stage]) -> None:
    model: Any = estfx.transform(build("gpt2"), Schedule(stages=stages), compile=False, verify=False)
    ids = tokens()
    model.set_step(3)
    want = model(ids).logits
    model.warmup(input_ids=ids, labels=ids)
    assert (model.step, model.stage_index, model.stage) == (3, 0, stages[0])
    assert torch.equal(model(ids).logits, want)
