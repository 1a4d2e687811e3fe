"""What optimizers do to what takes no part in a step."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_decoders import InList, heads_in_lists
from hand_written import HEADS, VOCABULARY, PreNorm
from tiny_decoders import DECODERS, build, depth, tokens

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STAGES = (Stage(start=0, heads=0.5, neurons=0.25, layers=0.5), Stage(start=4, heads=0.5, neurons=0.5), Stage(start=8))
GROWING = Schedule(stages=STAGES, resample_every="never", kept_units="as_is")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=1.0),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=1.0, fused=True),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9, weight_decay=1.0),
}


def evolving(name: str = "gpt2", schedule: Schedule = GROWING) -> Any:
    return estfx.transform(build(name, **depth(name, 4)), schedule, compile=False, verify=False)


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def one_step(model: Any, optimizer: Any, step: int, set_to_none: bool = True) -> None:
    model.set_step(step)
    ids = tokens(batch=2, seed=step)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)


def idle_of(model: Any) -> dict[str, torch.Tensor]:
    """Of every parameter that the step in force narrows, which numbers are idle."""
    found = {}
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, dims in model.subnetwork.parameters().items():
        at_work = torch.ones(sizes[name], dtype=torch.bool)
        for dim, kept in dims.items():
            along = torch.zeros(sizes[name][dim], dtype=torch.bool)
            along[kept] = True
            shape = [1] * len(sizes[name])
            shape[dim] = -1
            at_work &= along.view(shape)
        found[name] = ~at_work
    return found


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_stays_out_of_a_part_that_is_drawn_once_stays_as_it_was(name: str, optimizer: str) -> None:
    model = evolving(name)
    own = OPTIMIZERS[optimizer](model.parameters())
    before = snapshot(model)
    for step in range(8):
        one_step(model, own, step)
        after = snapshot(model)
        idle = idle_of(model)
        assert idle
        for each, numbers in idle.items():
            assert torch.equal(after[each][numbers], before[each][numbers]), each
            assert (after[each][~numbers] != before[each][~numbers]).any(), each
    one_step(model, own, 8)
    assert all((weight != before[each]).any() for each, weight in snapshot(model).items() if each in idle)


def test_at_work_an_optimizer_does_what_it_does_anyway() -> None:
    left, updated = evolving(), evolving(schedule=GROWING.model_copy(update={"idle_units": "updated"}))
    own, other = (OPTIMIZERS["adamw"](model.parameters()) for model in (left, updated))
    for step in range(4):
        one_step(left, own, step)
        one_step(updated, other, step)
        idle = idle_of(left)
        with torch.no_grad():  # else the second stage would read what was decayed
            for name, weight in snapshot(left).items():
                theirs = updated.get_parameter(name)
                numbers = idle.get(name, torch.zeros_like(weight, dtype=torch.bool))
                assert torch.equal(weight[~numbers], theirs[~numbers]), name
                if name in idle and weight.dim() == 2:
                    assert (weight[numbers] != theirs[numbers]).any(), name


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({"resample_every": 1}, False),
        ({"resample_every": 1, "idle_units": "left_alone"}, True),
        ({"idle_units": "updated"}, False),
        ({"resample_every": 1, "policy": "rolling"}, True),
        ({"resample_every": 1, "policy": "weight_magnitude"}, True),
        ({"resample_every": 1, "policy": "weight_magnitude", "idle_units": "updated"}, False),
    ],
)
def test_when_units_are_left_alone(options: dict[str, Any], alone: bool) -> None:
    schedule = Schedule.model_validate({**GROWING.model_dump(), **options})
    assert schedule.leaves_idle_alone is alone
    model = evolving(schedule=schedule)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for step in range(6):
        before = snapshot(model)
        one_step(model, optimizer, step)
        after = snapshot(model)
        same = [torch.equal(after[name][idle], before[name][idle]) for name, idle in idle_of(model).items()]
        assert all(same) is alone  # biases begin at zero, which nothing decays


def test_a_skipped_layer_whose_gradients_are_zeros_is_left_alone() -> None:
    model = evolving()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = snapshot(model)
    for step in range(3):
        one_step(model, optimizer, step, set_to_none=False)
    skipped = [name for name, runs in model.subnetwork.layers.items() if not runs]
    assert len(skipped) == 2
    for name, parameter in model.named_parameters():
        out = any(name.startswith(f"{layer}.") for layer in skipped)
        assert torch.equal(parameter, before[name]) is out, name


def test_a_weight_that_a_skipped_layer_shares_is_trained() -> None:
    ids = torch.randint(VOCABULARY, (2, 16))
    two = InList(PreNorm(), PreNorm())
    two.layers[1].mlp.down.weight = two.layers[0].mlp.down.weight
    schedule = GROWING.model_copy(update={"stages": (Stage(start=0, layers=0.5), Stage(start=8))})
    model = estfx.transform(two, schedule, example_inputs=(ids,), compile=False, verify=False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    before = snapshot(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.set_step(0)
    model(ids).sum().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "layers.0.mlp.down.weight" in changed
    (skipped,) = (name for name, runs in model.subnetwork.layers.items() if not runs)
    assert not any(name.startswith(f"{skipped}.") for name in changed - {"layers.0.mlp.down.weight"})


def test_an_optimizer_of_other_weights_and_a_restored_model_are_not_touched() -> None:
    model = evolving()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    one_step(model, optimizer, 0)
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.zeros(3)
    OPTIMIZERS["adamw"]([other]).step()
    assert (other < 1).all()
    twin = copy.deepcopy(model)
    estfx.restore(twin)
    before = snapshot(twin)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    OPTIMIZERS["adamw"](twin.parameters()).step()
    assert not any(
        torch.equal(parameter, before[name]) for name, parameter in twin.named_parameters() if "weight" in name
    )


def test_heads_in_modules_of_their_own_are_left_alone_whole() -> None:
    ids = tokens(batch=2) % VOCABULARY
    model: Any = estfx.transform(heads_in_lists(False), GROWING, example_inputs=(ids,), compile=False, verify=False)
    own = OPTIMIZERS["adamw"](model.parameters())
    before = snapshot(model)
    model.set_step(4)
    model(ids).square().mean().backward()
    own.step()
    listed = model.subnetwork.parameters()
    for layer, units in model.subnetwork.units.items():
        kept = set(units["heads"].tolist())
        assert 0 < len(kept) < HEADS
        for i in range(HEADS):
            name = f"{layer}.attention.heads.{i}.query.weight"
            assert torch.equal(model.get_parameter(name), before[name]) == (i not in kept)
            assert (name in listed) == (i not in kept)


def test_an_optimizer_whose_step_fails_is_not_kept() -> None:
    class OutOfMemory(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise RuntimeError("CUDA out of memory.")

    model = evolving()
    failing = OutOfMemory(model.parameters(), lr=1e-2)
    with pytest.raises(RuntimeError, match="out of memory"):
        one_step(model, failing, 0)
    alive = weakref.ref(failing)
    del failing
    gc.collect()
    assert alive() is None
    model.zero_grad()
    one_step(model, OPTIMIZERS["sgd"](model.parameters()), 0)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")  # LBFGS does
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_leaves_them_alone_too_and_draws_once_a_step(search: str | None) -> None:
    """It calls a closure several times in a step, and moves what has no gradient along earlier directions."""
    model = evolving(schedule=GROWING.model_copy(update={"resample_every": 1, "idle_units": "left_alone"}))
    own = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn=search)
    for step in range(4):
        model.set_step(step)
        before, ids, calls = snapshot(model), tokens(batch=2, seed=step), []

        def closure(ids: torch.Tensor = ids, calls: list[str] = calls) -> torch.Tensor:
            own.zero_grad()
            calls.append(str(model.subnetwork))
            loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss

        own.step(closure)
        assert len(calls) > 1
        assert len(set(calls)) == 1
        after = snapshot(model)
        for each, numbers in idle_of(model).items():
            assert torch.equal(after[each][numbers], before[each][numbers]), each
        assert all((after[each] != before[each]).any() for each, numbers in idle_of(model).items() if not numbers.all())
