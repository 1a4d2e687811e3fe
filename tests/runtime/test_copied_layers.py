"""Layers that join as copies of trained ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from foreign_decoders import InList
from hand_written import VOCABULARY, PreNorm
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoders import DECODERS, build, depth, tokens

import estfx
from estfx.errors import ScheduleError
from estfx.schedules.draws import spread_layers
from estfx.schedules.preset_by_name import preset_schedule
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.schedules.step_draw import layers_of_stage

STAGES = (Stage(start=0, layers=0.5), Stage(start=3, layers=0.75), Stage(start=6))
COPIES = Schedule(stages=STAGES, total_steps=9, resample_every="never", joining_layers="copies")
SOURCES = {0: (0, 0, 2, 2), 3: (0, 1, 2, 2), 6: (0, 1, 2, 3)}  # of four layers, by the first step of each stage
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.5, amsgrad=True),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=1e-2, fused=True),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
}


def evolving(name: str = "gpt2", schedule: Schedule = COPIES) -> Any:
    return estfx.transform(build(name, **depth(name, 4)), schedule, compile=False, verify=False)


def layers_of(model: Any) -> list[Any]:
    return [model.get_submodule(layer.name) for layer in model.report.layers]


def one_step(model: Any, optimizer: torch.optim.Optimizer, step: int) -> float:
    ids = tokens(batch=2, seed=step)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def assert_same(one: Any, other: Any, optimizer: torch.optim.Optimizer, momentum: bool = True) -> None:
    for (name, theirs), own in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(theirs, own), name
        before, after = optimizer.state[theirs], optimizer.state[own]
        assert before.keys() == after.keys()
        assert bool(before) is momentum
        for key, value in before.items():
            if isinstance(value, torch.Tensor):
                assert value is not after[key]
                assert torch.equal(value, after[key]), (name, key)
            else:
                assert value == after[key], (name, key)


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_does_not_run_yet_follows_what_does(name: str, optimizer: str) -> None:
    model = evolving(name)
    own = OPTIMIZERS[optimizer](model.parameters())
    layers = layers_of(model)
    for step in range(6):
        model.set_step(step)
        one_step(model, own, step)
        sources = SOURCES[3 * (step // 3)]
        assert list(model.subnetwork.layers.values()) == [source == layer for layer, source in enumerate(sources)]
        for layer, source in enumerate(sources):
            if layer != source:
                assert_same(layers[source], layers[layer], own)
    model.set_step(6)
    one_step(model, own, 6)
    for before, after in pairwise(layers):
        first = next(name for name, weight in before.named_parameters() if weight.dim() == 2)
        assert not torch.equal(before.get_parameter(first), after.get_parameter(first))


@pytest.mark.parametrize("policy", ["rolling", "random"])
def test_layers_that_join_may_have_had_other_units_at_every_step(policy: str) -> None:
    stages = [stage.model_copy(update={"heads": 0.5, "neurons": 0.5}) for stage in STAGES[:2]]
    every = {"resample_every": 1, "draws": "shared", "policy": policy}
    schedule = Schedule(**{**dict(COPIES), **every, "stages": (*stages, STAGES[2])})
    model = evolving("llama_grouped", schedule)
    own = OPTIMIZERS["adamw"](model.parameters())
    layers = layers_of(model)
    for step in range(6):
        model.set_step(step)
        units = [kept["neurons"].tolist() for kept in model.subnetwork.units.values()]
        assert all(each == units[0] for each in units)
        one_step(model, own, step)
        for layer, source in enumerate(SOURCES[3 * (step // 3)]):
            if layer != source:
                assert_same(layers[source], layers[layer], own)


def stacked(shallow: Any, before: torch.optim.Optimizer, sources: Sequence[int], name: str) -> Any:
    """A deeper model made by hand, and its optimizer, whose layers are copies of a shallow one's."""
    deep = build(name, **depth(name, len(sources)))
    optimizer = OPTIMIZERS["adamw"](deep.parameters())
    inside = "transformer.h" if name == "gpt2" else "model.layers"
    for path, parameter in deep.named_parameters():
        source = path
        if path.startswith(inside):
            number, rest = path.removeprefix(f"{inside}.").split(".", 1)
            source = f"{inside}.{sources[int(number)]}.{rest}"
        theirs = shallow.get_parameter(source)
        with torch.no_grad():
            parameter.copy_(theirs)
        optimizer.state[parameter] = copy.deepcopy(before.state[theirs])
    return deep, optimizer


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_it_trains_what_a_shallow_model_and_then_a_deeper_one_train(name: str) -> None:
    model = evolving(name)
    start = copy.deepcopy(estfx.restore(copy.deepcopy(model)))
    own = OPTIMIZERS["adamw"](model.parameters())
    losses = []
    for step in range(9):
        model.set_step(step)
        losses.append(one_step(model, own, step))
    shallow, optimizer = stacked(start, OPTIMIZERS["adamw"](start.parameters()), (0, 2), name)
    by_hand = [one_step(shallow, optimizer, step) for step in range(3)]
    middle, optimizer = stacked(shallow, optimizer, (0, 0, 1), name)
    by_hand += [one_step(middle, optimizer, step) for step in range(3, 6)]
    deep, optimizer = stacked(middle, optimizer, (0, 1, 2, 2), name)
    by_hand += [one_step(deep, optimizer, step) for step in range(6, 9)]
    assert losses == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("copies", [((0, 0, 1, 1),), ((0, 0, 1), (0, 1, 2, 2))])
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_narrow_layers_join_as_they_would_in_a_shallow_model_that_grew(
    name: str, copies: tuple[tuple[int, ...], ...]
) -> None:
    num_stages = len(copies)
    schedule = Schedule.compound(6 * num_stages, num_stages=num_stages, whole_from=0.5)
    schedule = schedule.model_copy(update={"draws": "shared"})
    model = evolving(name, schedule)
    start = copy.deepcopy(estfx.restore(copy.deepcopy(model)))
    own = OPTIMIZERS["adamw"](model.parameters())
    losses = []
    for step in range(6 * num_stages):
        model.set_step(step)
        losses.append(one_step(model, own, step))
    grown, optimizer = start, OPTIMIZERS["adamw"](start.parameters())
    by_hand = []
    for number, sources in enumerate(((0, 2), *copies)):
        grown, optimizer = stacked(grown, optimizer, sources, name)
        width = schedule.stages[number].model_copy(update={"start": 0, "layers": 1.0})
        alone = schedule.model_copy(update={"stages": (width,), "joining_layers": "initialised"})
        grown = estfx.transform(grown, alone, compile=False, verify=False)
        for step in range(3 * number, 3 * number + 3 if number < num_stages else 6 * num_stages):
            grown.set_step(step)
            by_hand.append(one_step(grown, optimizer, step))
    assert losses == pytest.approx(by_hand, rel=1e-5)
    assert len({f"{loss:.4f}" for loss in losses}) == 6 * num_stages


@pytest.mark.parametrize("stopped", [2, 3, 5, 6, 7])
def test_a_run_goes_on_from_any_checkpoint_as_if_it_had_not_stopped(stopped: int) -> None:
    model = evolving()
    own = OPTIMIZERS["adamw"](model.parameters())
    losses = []
    for step in range(9):
        if step == stopped:
            saved = copy.deepcopy((model.state_dict(), own.state_dict()))
        model.set_step(step)
        losses.append(one_step(model, own, step))
    again = evolving()
    again.load_state_dict(saved[0])
    own = OPTIMIZERS["adamw"](again.parameters())
    own.load_state_dict(saved[1])
    for step in range(stopped, 9):
        again.set_step(step)
        assert one_step(again, own, step) == losses[step]
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_optimizers_of_other_parameters_copy_what_they_have() -> None:
    model = evolving()
    layers = layers_of(model)
    matrices = torch.optim.AdamW([weight for weight in model.parameters() if weight.dim() == 2], lr=1e-2)
    others = torch.optim.SGD([weight for weight in model.parameters() if weight.dim() != 2], lr=1e-2)
    head = torch.optim.SGD([model.lm_head.weight], lr=1e-2)
    model.set_step(0)
    ids = tokens(batch=2)
    model(input_ids=ids, labels=ids).loss.backward()
    before = [weight.clone() for weight in layers[1].parameters()]
    head.step()
    assert all(map(torch.equal, before, layers[1].parameters()))
    matrices.step()
    others.step()
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.equal(one, other)
        assert matrices.state[one].keys() == matrices.state[other].keys()


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_run_whose_optimizer_is_not_seen_is_warned_when_layers_join(
    by_hand: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = evolving()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for step in range(4):
        model.set_step(step)
        assert not caplog.records
        ids = tokens(batch=2)
        model(input_ids=ids, labels=ids).loss.backward()
        if by_hand:
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= 1e-3 * (weight.grad if weight.grad is not None else 0)
        else:
            optimizer.step()
        if step == 2 and by_hand:
            break
    if by_hand:
        model.set_step(3)
        (record,) = caplog.records
        assert "1 layers join at step 3 as they are, not as copies" in record.getMessage()


def test_buffers_and_weights_that_layers_share() -> None:
    ids = torch.randint(VOCABULARY, (2, 16))
    two = InList(PreNorm(), PreNorm())
    for number, layer in enumerate(two.layers):
        layer.register_buffer("counted", torch.full((3,), float(number)))
    two.layers[1].mlp.down.weight = two.layers[0].mlp.down.weight
    schedule = COPIES.model_copy(update={"stages": (Stage(start=0, layers=0.5), Stage(start=4))})
    model = estfx.transform(two, schedule, example_inputs=(ids,), compile=False, verify=False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    model.set_step(0)
    model(ids).sum().backward()
    optimizer.step()
    assert list(model.subnetwork.layers.values()) == [True, False]
    assert_same(two.layers[0].attention, two.layers[1].attention, optimizer)
    assert torch.equal(two.layers[1].counted, two.layers[0].counted)


def test_a_weight_that_an_idle_layer_shares_with_one_at_work_is_trained_and_no_copy() -> None:
    ids = torch.randint(VOCABULARY, (2, 16))
    four = InList(*(PreNorm() for _ in range(4)))
    shared = four.layers[1].mlp.down.weight = four.layers[2].mlp.down.weight
    schedule = COPIES.model_copy(update={"stages": (Stage(start=0, layers=0.5), Stage(start=4))})
    model = estfx.transform(four, schedule, example_inputs=(ids,), compile=False, verify=False)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    model.set_step(0)
    assert list(model.subnetwork.layers.values()) == [True, False, True, False]  # the second follows the first
    model(ids).sum().backward()
    want = shared.detach() - 1e-2 * shared.grad
    optimizer.step()
    torch.testing.assert_close(shared.detach(), want)
    assert torch.equal(four.layers[1].mlp.up.weight, four.layers[0].mlp.up.weight)


def test_a_layer_that_no_other_is_like_joins_as_it_was_initialised(caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.randint(VOCABULARY, (2, 16))
    two = InList(PreNorm(), PreNorm())
    two.layers[1].register_parameter("own", torch.nn.Parameter(torch.zeros(2)))
    schedule = COPIES.model_copy(update={"stages": (Stage(start=0, layers=0.5), Stage(start=4))})
    model = estfx.transform(two, schedule, example_inputs=(ids,), compile=False, verify=False)
    before = [weight.clone() for weight in two.layers[1].parameters()]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for step in range(2):
        model.set_step(step)
        model(ids).sum().backward()
        optimizer.step()
    assert all(map(torch.equal, before, two.layers[1].parameters()))
    told = [record.message for record in caplog.records if "cannot join as a copy" in record.message]
    assert len(told) == 1
    assert "layers.1" in told[0]


def test_what_joins_as_a_copy_is_not_zeroed() -> None:
    assert evolving().zero_joining() == 0
    narrow = (Stage(start=0, layers=0.5, neurons=0.5), Stage(start=4))
    model = evolving(schedule=COPIES.model_copy(update={"stages": narrow}))
    assert model.zero_joining() == 2 * model.config.n_embd * 4 // 2  # idle neurons of the two layers that run


def test_layers_with_the_same_units_are_spread_by_themselves() -> None:
    mixers, experts = {"channels": 8}, {"heads": 4, "neurons": 8}
    sizes = [mixers, experts] * 4
    schedule = COPIES.model_copy(update={"stages": (*STAGES[:2], Stage(start=6))})
    assert layers_of_stage(schedule, 0, sizes).tolist() == [True, True, False, False] * 2
    half, more = (layers_of_stage(schedule, index, sizes) for index in (0, 1))
    assert np.count_nonzero(more) == 6
    assert more[half].all()
    always = schedule.model_copy(update={"always_run": (-1,)})
    assert layers_of_stage(always, 0, sizes)[-1]
    assert layers_of_stage(always, 2, sizes).all()


def test_a_plan_counts_the_layers_that_run() -> None:
    plan = estfx.plan(build("gpt2", n_layer=4), COPIES, batch_size=2, seq_len=12)
    assert [stage.units["layers"] for stage in plan.stages] == [(2, 4), (3, 4), (4, 4)]
    layer = sum(weight.numel() for weight in layers_of(evolving())[0].parameters())
    assert plan.stages[2].parameters - plan.stages[0].parameters == 2 * layer
    assert plan.stages[0].flops_layers == pytest.approx(plan.stages[2].flops_layers / 2)


def test_a_model_that_was_loaded_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evolving()
    assert not caplog.records
    build("gpt2", n_layer=4).save_pretrained(tmp_path / "trained")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    estfx.transform(loaded, COPIES, compile=False, verify=False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "trained") in warning
    assert "overwritten" in warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "weight_magnitude"}, "policies that rank nothing"),
        ({"stages": (Stage(start=0), Stage(start=4, layers=0.5))}, "depth that grows; stage 2 runs 0.5"),
        ({"stages": (Stage(start=0, layers=0.5), Stage(start=4, heads=0.5), Stage(start=8))}, "use draws=shared"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Schedule(**{**dict(COPIES), **options})


def test_the_preset() -> None:
    schedule = Schedule.stacking(100)
    assert [(stage.start, stage.layers, stage.heads) for stage in schedule.stages] == [(0, 0.5, 1.0), (55, 1.0, 1.0)]
    assert schedule.copies_layers
    assert preset_schedule("stacking", 100, 0.25).stages[0].layers == 0.25
    assert [stage.layers for stage in Schedule.stacking(100, layers=0.25, num_stages=3).stages] == [0.25, 0.5, 0.75, 1]
    both = preset_schedule("compound", 100)
    assert both == Schedule.compound(100) == preset_schedule("compound", 100, 0.5)
    assert (both.joining_layers, both.draws) == ("copies", "shared")
    fractions = [(0, 0.5, 0.5, 0.5), (22, 0.75, 0.75, 0.75), (45, 1.0, 1.0, 1.0)]
    assert [tuple(dict(stage).values()) for stage in both.stages] == fractions
    at_once = Schedule.compound(100, num_stages=1, whole_from=0.36)
    assert at_once.draws == "per_layer"
    assert [tuple(dict(stage).values()) for stage in at_once.stages] == [fractions[0], (36, 1.0, 1.0, 1.0)]
    assert Schedule.compound(100, keep=0.25, num_stages=3).stages[1].heads == 0.5
    several = Schedule.stacking(100, layers=0.5, neurons=0.5, num_stages=2)
    assert several.draws == "shared"
    assert Schedule.model_validate(several.model_dump()) == several  # what is refused, no copy of a model brings in


@given(st.integers(1, 40), st.data())
def test_layers_are_spread_evenly_and_only_join(num_layers: int, data: st.DataObject) -> None:
    first, *_ = counts = sorted(data.draw(st.lists(st.integers(1, num_layers), min_size=1, max_size=4)))
    always = data.draw(st.lists(st.integers(0, num_layers - 1), max_size=first, unique=True))
    before = np.zeros(num_layers, dtype=bool)
    before[always] = True
    for number, count in enumerate(counts, start=1):
        runs = spread_layers(num_layers, counts[:number], always)
        assert np.count_nonzero(runs) == count
        assert runs[before].all()
        before = runs
    if not always:
        gaps = np.diff([*np.flatnonzero(spread_layers(num_layers, [first])), num_layers])
        assert max(gaps) - min(gaps) <= 1
