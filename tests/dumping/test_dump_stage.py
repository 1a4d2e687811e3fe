import re

import pytest
import torch
from hand_written import Block, Decoder, PreNorm
from tiny_decoders import build

from estfx.dumping.dump_stage import dump
from estfx.errors import ScheduleError
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.4, neurons=0.5, layers=0.67), Stage(start=7, heads=0.4), Stage(start=9)]
)
IDS = (torch.randint(101, (3, 17)),)


def test_the_graphs_of_a_stage() -> None:
    text = dump(Decoder(PreNorm(), PreNorm(), PreNorm()), SCHEDULE, 0, IDS)
    assert text.startswith(
        "# Decoder, stage 1 of 3, from step 0\n# PreNorm: 3 layers (layers.0 … layers.2), 67% of them run; "
    )
    assert "heads 2 of 5, neurons 28 of 56\ngraph PreNorm:\n" in text
    assert re.search(r"= gelu\(%linear_2\) +f32\[b, t, 28\]", text)
    assert "mul(%take_2, 2.5)" in text


def test_what_a_stage_leaves_whole() -> None:
    text = dump(Decoder(PreNorm(), PreNorm()), SCHEDULE, 1, IDS)
    assert "# Decoder, stage 2 of 3, from step 7\n" in text
    assert "100% of them run; heads 2 of 5, neurons 56 of 56\n" in text
    whole = dump(Decoder(PreNorm()), SCHEDULE, 2, IDS)
    assert "heads 5 of 5, neurons 56 of 56\n" in whole
    assert "take(" not in whole


class Highway(Block):
    """A gate weighs the stream against the branch, so that the stream does not go through unchanged."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.norm_1(x_BTD))
        return x_BTD * gate + self.attention(x_BTD) * (1 - gate)


def test_layers_that_cannot_be_passed_over_all_run() -> None:
    assert "layers.0, all of them run; heads 2 of 5" in dump(Decoder(Highway()), SCHEDULE, 0, IDS)


def test_every_kind_of_layer_is_shown() -> None:
    model = build("gpt2", scale_attn_by_inverse_layer_idx=True, n_layer=2)
    text = dump(model, SCHEDULE, 0)
    assert [line for line in text.splitlines() if line.startswith("graph ")] == ["graph GPT2Block:"] * 2
    assert "# GPT2Block: transformer.h.0, " in text
    assert "# GPT2Block_2: transformer.h.1, " in text


@pytest.mark.parametrize("stage", [3, -1])
def test_refusal_of_a_stage_that_does_not_exist(stage: int) -> None:
    with pytest.raises(ScheduleError, match=f"stage {stage} was asked for, but the schedule has 3: 0 to 2."):
        dump(Decoder(PreNorm()), SCHEDULE, stage, IDS)
