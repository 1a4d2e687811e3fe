import json

import pytest
import torch
from foreign_decoders import Universal
from hand_written import VOCABULARY
from transformers import LlamaConfig, LlamaForCausalLM

import estfx
from estfx.made_with import drawn_layers, made_with
from estfx.schedule import Schedule, Stage
from estfx.step_draw import draw_step, units_kept

STAGES = (Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=4, heads=0.5, neurons=0.3), Stage(start=8))


def llama():
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("policy", ["random", "window"])
@pytest.mark.parametrize("make", [llama, Universal])
def test_what_is_written_down_of_a_model_gives_the_subnetworks_that_it_trains(make, policy):
    schedule = Schedule(stages=STAGES, policy=policy, neurons_multiple_of=4)
    ids = torch.randint(VOCABULARY, (2, 16))
    model = estfx.transform(make(), schedule, example_inputs=(ids,), seed=7, compile=False, verify=False)
    written = json.loads(json.dumps(made_with(model)))
    layers = drawn_layers(written["layers"])
    for step in range(10):
        model.set_step(step)
        draw = draw_step(Schedule(**written["schedule"]), written["seed"], layers, step)
        assert draw.stage_index == model.stage_index
        assert draw.running == model.subnetwork.layers
        for name, units in model.subnetwork.units.items():
            assert {role: drawn.tolist() for role, drawn in draw.units[name].items()} == {
                role: kept.tolist() for role, kept in units.items()
            }


def test_neurons_alone_are_rounded_to_multiples():
    schedule = Schedule(stages=STAGES, neurons_multiple_of=8)
    stage = schedule.stages[1]
    assert [units_kept(schedule, stage, role, 50) for role in ("heads", "channels", "neurons", "neurons_2")] == [
        25, 25, 16, 16,
    ]  # fmt: skip
