import json

import numpy as np
import pytest
import torch
from foreign_decoders import Universal
from hand_written import VOCABULARY
from transformers import LlamaConfig, LlamaForCausalLM

import estfx
from estfx.errors import ScheduleError
from estfx.runtime.model_state import made_with
from estfx.runtime.run_fingerprint import drawn_layers
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.schedules.step_draw import draw_step, units_kept

STAGES = (Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=4, heads=0.5, neurons=0.3), Stage(start=8))


def llama():
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("policy", ["random", "window", "rolling"])
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


LAYERS = drawn_layers({f"layers.{i}": {"droppable": True, "heads": 8, "neurons": 24} for i in range(6)})


def draws(steps=range(24), **options):
    schedule = Schedule(stages=STAGES, **options)
    return [draw_step(schedule, 3, LAYERS, step) for step in steps]


def units(draw, role="neurons"):
    return [each[role].tolist() for each in draw.units.values()]


def test_layers_may_keep_the_same_units():
    for draw in draws(range(8), draws="shared"):
        for role in ("heads", "neurons"):
            assert all(each == units(draw, role)[0] for each in units(draw, role))
    own = draws(range(8))
    assert all(len(set(map(tuple, units(draw)))) > 1 for draw in own)
    assert [units(draw)[0] for draw in draws(range(8), draws="shared")] == [units(draw)[0] for draw in own]


def test_a_draw_may_serve_several_steps():
    stage = Schedule(stages=STAGES[:1], resample_every=5)
    drawn = [draw_step(stage, 3, LAYERS, step) for step in range(15)]
    same = [(units(draw), draw.running) for draw in drawn]
    assert all(each == same[5 * (step // 5)] for step, each in enumerate(same))
    assert same[0] != same[5] != same[10]


def test_a_stage_that_begins_within_a_period_has_its_own_sizes():
    sizes = [len(units(draw)[0]) for draw in draws(range(10), resample_every=7)]
    assert sizes == [len(units(draw)[0]) for draw in draws(range(10))]


def ranked(layers, scores, **options):
    """The neurons of each layer that has some, by scores for each; with exploration=0 the best."""
    schedule = Schedule(
        stages=[Stage(start=0, neurons=0.5)], policy="weight_magnitude", **{"exploration": 0.0, **options}
    )
    scores = {(path, "neurons"): np.array(each, dtype=float) for path, each in scores.items()}
    scores |= {(path, "heads"): np.zeros(4) for path, layer in layers.items() if "heads" in layer}
    drawn = draw_step(schedule, 3, drawn_layers(layers), 0, scores)
    return {name: roles["neurons"].tolist() for name, roles in drawn.units.items() if "neurons" in roles}


MLP, ATTENTION = {"droppable": True, "neurons": 4}, {"droppable": True, "heads": 4}


def test_layers_that_keep_the_same_units_are_ranked_by_all_of_them():
    scores = {"a": [2, 1, 0, 0], "b": [0, 0, 9, 8]}
    assert ranked({"a": MLP, "b": MLP}, scores) == {"a": [0, 1], "b": [2, 3]}
    assert ranked({"a": MLP, "b": MLP}, scores, draws="shared") == {"a": [2, 3], "b": [2, 3]}


def test_layers_are_ranked_by_their_own_scores_whichever_others_have_units():
    scores = {"b": [2, 1, 0, 0], "d": [0, 0, 9, 8]}
    assert ranked({"a": ATTENTION, "b": MLP, "c": ATTENTION, "d": MLP}, scores) == {"b": [0, 1], "d": [2, 3]}


def test_a_share_of_what_is_kept_is_drawn_among_the_others():
    layers, scores = {"a": {**MLP, "neurons": 64}}, {"a": range(64, 0, -1)}
    assert ranked(layers, scores)["a"] == list(range(32))
    some = ranked(layers, scores, exploration=0.25)["a"]
    assert some[:24] == list(range(24))
    assert some[24:] != list(range(24, 32))


def test_what_a_layer_draws_does_not_depend_on_what_others_have():
    def drawn(*layers):
        names = dict(zip("abcd", layers, strict=True))
        return draw_step(Schedule(stages=[Stage(start=0, neurons=0.5)]), 3, drawn_layers(names), 0).units["d"]

    wide = {**MLP, "neurons": 64}
    assert (
        drawn(ATTENTION, wide, ATTENTION, wide)["neurons"].tolist() == drawn(wide, wide, wide, wide)["neurons"].tolist()
    )


@pytest.mark.parametrize("always", [(0, -1), (2,), (0, 1, 2, 3)])
def test_some_layers_may_always_run(always):
    named = {index % 6 for index in always}
    for draw in draws(range(4), always_run=always):
        runs = list(draw.running.values())
        assert all(runs[index] for index in named)
        assert sum(runs) == max(3, len(named))
    others = [draw.running for draw in draws(range(4), always_run=always)]
    assert len(named) >= 3 or any(each != others[0] for each in others)


def test_refusal_of_a_layer_that_is_not_there():
    with pytest.raises(ScheduleError, match="always_run names layer 6, but there are 6 layers that can be skipped"):
        draws(range(1), always_run=(6,))


def test_neurons_alone_are_rounded_to_multiples():
    schedule = Schedule(stages=STAGES, neurons_multiple_of=8)
    stage = schedule.stages[1]
    assert [units_kept(schedule, stage, role, 50) for role in ("heads", "channels", "neurons", "neurons_2")] == [
        25, 25, 16, 16,
    ]  # fmt: skip
