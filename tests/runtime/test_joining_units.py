"""What joins a growing part adds nothing at first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign_decoders import InList, Universal
from hand_written import VOCABULARY, PreNorm
from tiny_decoders import DECODERS, build, depth, tokens

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STAGES = (Stage(start=0, heads=0.5, neurons=0.25, layers=0.5), Stage(start=5, heads=0.5, neurons=0.5), Stage(start=9))
GROWING = Schedule(stages=STAGES, resample_every="never", kept_units="as_is")


def losses_at(model: Any, steps: tuple[int, ...] = (0, 5, 9)) -> list[float]:
    ids = tokens(batch=2)
    found = []
    for step in steps:
        model.set_step(step)
        found.append(model(input_ids=ids, labels=ids).loss.item())
    return found


def evolving(name: str, schedule: Schedule = GROWING) -> Any:
    return estfx.transform(build(name, **depth(name, 4)).double(), schedule, compile=False, verify=False)


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
def test_the_loss_does_not_jump_when_the_part_grows(name: str) -> None:
    model = evolving(name)
    first, *later = losses_at(model)
    coupled = 1e-3 if name == "olmo2" else 1e-12  # a norm over all heads takes in the ones that join
    before = max(abs(loss - first) for loss in later)
    model.zero_joining()
    first, *later = losses_at(model)
    assert later == pytest.approx([first, first], rel=coupled)
    assert before > 1e-6  # else nothing was shown


def test_what_joins_learns() -> None:
    model = evolving("gpt2")
    zeroed = model.zero_joining()
    model.set_step(0)
    width = model.config.n_embd // model.config.n_head
    rows = sum(width * len(each["heads"]) + len(each["neurons"]) for each in model.subnetwork.units.values())
    assert zeroed == 4 * 5 * model.config.n_embd - rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.set_step(9)
    ids = tokens(batch=2)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for layer in model.transformer.h:
        assert (layer.mlp.c_proj.weight != 0).any(dim=1).all()
        assert (layer.attn.c_proj.weight != 0).any(dim=1).all()


def test_what_is_zeroed_is_what_no_layer_reads() -> None:
    ids = torch.randint(VOCABULARY, (2, 16))
    two = InList(PreNorm(), PreNorm())
    two.layers[1].mlp.down.weight = two.layers[0].mlp.down.weight  # a sum that both layers share
    for model in (Universal(), two):
        stages = (Stage(start=0, neurons=0.5), Stage(start=5))
        schedule = GROWING.model_copy(update={"stages": stages})
        model = estfx.transform(model, schedule, example_inputs=(ids,), compile=False, verify=False)
        model.set_step(0)
        before = model(ids)
        assert model.zero_joining() > 0
        assert torch.equal(before, model(ids))  # nothing that is at work was touched


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resample_every": 1}, "the schedule has resample_every=1 and policy='random'"),
        ({"policy": "weight_magnitude"}, "resample_every='never' and policy='weight_magnitude'"),
    ],
)
def test_a_part_that_is_not_known_beforehand_is_refused(options: dict[str, Any], said: str) -> None:
    model = evolving("gpt2", GROWING.model_copy(update=options))
    with pytest.raises(estfx.EstfxError, match=said):
        model.zero_joining()
