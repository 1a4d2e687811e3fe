"""Decoders that are none of transformers': found, narrowed, skipped, and trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_decoders import (
    AsAttributes,
    EinsumBlock,
    InDict,
    InList,
    InSequential,
    NanoGpt,
    OddlyNamed,
    ScaledBetween,
    Universal,
    all_in_sequence,
    heads_in_lists,
    one_block_four_times,
    tied_between_layers,
)
from hand_written import HEADS, NEURONS, VOCABULARY
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage, kept_count

WHOLE = Schedule(stages=[Stage(start=0)])
HALF = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10)])

MODELS: dict[str, tuple[Callable[[], nn.Module], str | None, list[str]]] = {  # how to build, layers=, their names
    "nanogpt_flash": (lambda: NanoGpt(flash=True), None, [f"transformer.h.{i}" for i in range(3)]),
    "nanogpt_mask": (lambda: NanoGpt(flash=False), None, [f"transformer.h.{i}" for i in range(3)]),
    "heads_in_a_list": (lambda: heads_in_lists(False), None, [f"layers.{i}" for i in range(3)]),
    "heads_stacked": (lambda: heads_in_lists(True), None, [f"layers.{i}" for i in range(3)]),
    "einsum": (lambda: InList(EinsumBlock(), EinsumBlock(), EinsumBlock()), None, [f"layers.{i}" for i in range(3)]),
    "dict": (InDict, None, [f"blocks.layer_{i}" for i in range(3)]),
    "attributes": (AsAttributes, None, [f"block{i}" for i in range(6)]),
    "sequential": (InSequential, None, [f"blocks.{i}" for i in range(3)]),
    "all_in_sequence": (all_in_sequence, None, [f"blocks.{i}" for i in range(3)]),
    "odd_names": (OddlyNamed, "stack.*", ["stack.first layer", "stack.second-layer", "stack.3"]),
    "scaled_between": (ScaledBetween, "blocks.?", [f"blocks.{i}" for i in range(3)]),
    "universal": (Universal, None, [f"layers.{i}{n}" for n in ("", "#2", "#3") for i in range(2)]),
    "one_block": (one_block_four_times, None, ["layers.0", "layers.0#2", "layers.0#3", "layers.0#4"]),
    "tied": (tied_between_layers, None, [f"layers.{i}" for i in range(3)]),
}


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of a loss."""
    model.zero_grad()
    logits = model(ids(seed))
    nn.functional.cross_entropy(logits.flatten(0, 1), ids(seed).flatten()).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def evolving(name: str, schedule: Schedule = HALF, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    build, layers, _ = MODELS[name]
    options = {"compile": False, **options}
    return estfx.transform(build().to(dtype), schedule, example_inputs=(ids(),), layers=layers, **options)


@pytest.mark.parametrize("name", MODELS)
def test_layers_heads_and_neurons_are_found_and_verified(name: str) -> None:
    report = evolving(name).report
    assert [layer.name for layer in report.layers] == MODELS[name][2]
    for layer in report.layers:
        assert layer.droppable
        assert layer.notes == []
        assert {axis.role: axis.size for axis in layer.axes} == {"heads": HEADS, "neurons": NEURONS}


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_is_the_original_to_the_bit(name: str) -> None:
    build, layers, _ = MODELS[name]
    model = build()
    logits, grads = run(model)
    model = estfx.transform(model, WHOLE, example_inputs=(ids(),), layers=layers, compile=False, verify=False)
    model.set_step(0)
    new_logits, new_grads = run(model)
    assert torch.equal(new_logits, logits)
    assert new_grads.keys() == grads.keys()
    assert [parameter for parameter in grads if not torch.equal(grads[parameter], new_grads[parameter])] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_step_trains_what_the_subnetwork_says(name: str) -> None:
    model = evolving(name, verify=False)
    model.set_step(3)
    kept = model.subnetwork
    assert list(kept.layers) == MODELS[name][2]
    assert sum(kept.layers.values()) == kept_count(len(kept.layers), 0.5)
    before = {parameter: p.detach().clone() for parameter, p in model.named_parameters()}
    _, grads = run(model)
    running = {layer.partition("#")[0] for layer, runs in kept.layers.items() if runs}
    tied = {
        n
        for n, p in model.named_parameters()
        if sum(p is q for _, q in model.named_parameters(remove_duplicate=False)) > 1
    }
    for parameter in before.keys() - tied:
        owner = next((path for path in MODELS[name][2] if parameter.startswith(f"{path}.")), None)
        assert (parameter in grads) == (owner is None or owner in running), parameter
    listed = kept.parameters()
    assert listed
    first = {id(p): n for n, p in model.named_parameters()}  # the name under which a tied parameter has its gradient
    every = dict(model.named_parameters(remove_duplicate=False))
    dropped: dict[tuple[str, int], torch.Tensor] = {}  # by all layers that list it
    for parameter, dims in listed.items():
        for dim, index in dims.items():
            own = torch.ones(every[parameter].shape[dim], dtype=torch.bool)
            own[index] = False
            assert own.any()
            key = (first[id(every[parameter])], dim)
            dropped[key] = own & dropped.get(key, own)
    for (parameter, dim), own in dropped.items():
        assert not grads[parameter].movedim(dim, 0)[own].any()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(p, before[parameter]) for parameter, p in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_restore_and_eval_give_the_original(name: str) -> None:
    model = evolving(name, verify=False)
    twin = MODELS[name][0]()
    twin.load_state_dict(model.state_dict())
    want = twin(ids())
    model.set_step(0)
    run(model)
    assert torch.equal(model.eval()(ids()), want)
    assert torch.equal(estfx.restore(model.train())(ids()), want)
    assert not any("_estfx" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["odd_names", "universal", "attributes", "one_block"])
def test_the_outer_graph_calls_every_layer(name: str) -> None:
    build, layers, names = MODELS[name]
    model = build()
    decoder = estfx.trace(model, (ids(),), layers=layers)
    assert list(decoder.layers) == names
    calls = [node.target for node in decoder.outer.graph.nodes if node.op == "call_module"]
    assert calls == [layer.partition("#")[0] for layer in names]
    assert torch.equal(decoder.outer(ids(1)), model(ids(1)))


def test_a_transformed_model_keeps_the_layers_that_it_was_given() -> None:
    model = evolving("odd_names")
    assert estfx.inspect(model, (ids(),)) == model.report
    assert list(copy.deepcopy(model).report.layers) == list(model.report.layers)
