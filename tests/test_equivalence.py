"""The oracles on whole models, by means of their own: torch modules, masks put into weights, counted FLOPs."""

from __future__ import annotations

import copy

import pytest
import torch
from masked_decoders import EverythingDouble, masked
from tiny_decoders import DECODERS, build, tokens
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

WHOLE = Schedule(stages=[Stage(start=0)])
EVOLVING = Schedule(
    stages=[
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.67),
        Stage(start=10, heads=0.4, neurons=0.3),
        Stage(start=20, heads=0.5),
        Stage(start=30, neurons=0.25),
        Stage(start=40, layers=0.34),
    ]
)


def loss_and_gradients(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.logits.detach(), grads


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="float32", marks=pytest.mark.sweep("name", days=2)),
        pytest.param(torch.float64, id="float64", marks=pytest.mark.sweep("name")),
    ],
)
@pytest.mark.parametrize("name", DECODERS)
def test_whole_programs_are_the_original_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    ids = tokens()
    logits, grads = loss_and_gradients(model, ids)
    model = estfx.transform(model, WHOLE, compile=False)
    model.set_step(0)
    new_logits, new_grads = loss_and_gradients(model, ids)
    assert torch.equal(logits, new_logits)
    assert grads.keys() == new_grads.keys()
    assert [n for n in grads if not torch.equal(grads[n], new_grads[n])] == []


# -- a subnetwork is the masked whole ------------------------------------------------------------------------------


@pytest.mark.sweep("name", days=3)
@pytest.mark.parametrize("name", DECODERS)
def test_a_subnetwork_is_the_masked_whole(name: str) -> None:
    model = build(name).double()
    for parameter in model.parameters():  # nothing zero, nothing one
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    original = copy.deepcopy(model)
    model = estfx.transform(model, EVOLVING, compile=False, seed=3)
    for step in (0, 11, 22, 33, 44):
        compare_with_masked(model, copy.deepcopy(original), name, step)


def compare_with_masked(model: nn.Module, twin: nn.Module, name: str, step: int) -> None:
    ids = tokens(seed=step)
    model.set_step(step)
    with EverythingDouble():
        logits, grads = loss_and_gradients(model, ids)
    sizes = {axis.role: axis.size for axis in model.report.layers[0].axes}
    with masked(twin, name, model.subnetwork, sizes) as masks, EverythingDouble():
        want_logits, want_grads = loss_and_gradients(twin, ids)
    want_grads = {n: g * masks[n] if n in masks else g for n, g in want_grads.items()}
    assert (logits - want_logits).abs().max() <= 1e-10 * want_logits.abs().max()
    assert grads.keys() == want_grads.keys()
    largest = max(g.abs().max() for g in want_grads.values())
    for parameter, want in want_grads.items():
        scale = max(want.abs().max(), 1e-3 * largest)  # a key's bias has no gradient but rounding
        assert (grads[parameter] - want).abs().max() <= 1e-10 * scale, (parameter, step)


@pytest.mark.parametrize("name", DECODERS)
def test_heads_neurons_and_layers_are_found(name: str) -> None:
    report = estfx.inspect(build(name))
    for layer in report.layers:
        assert layer.droppable
        assert {axis.role: axis.size for axis in layer.axes}["heads"] == DECODERS[name][2]
        assert {axis.role for axis in layer.axes} == {"heads", "neurons"}
        assert layer.notes == []


def test_gradients_of_dropped_units_are_zero_and_of_skipped_layers_none() -> None:
    model = estfx.transform(build("llama_grouped"), EVOLVING, compile=False)
    model.set_step(0)
    _, grads = loss_and_gradients(model, tokens())
    kept = model.subnetwork
    for name, runs in kept.layers.items():
        assert all((f"{name}.{n}" in grads) == runs for n, _ in model.get_submodule(name).named_parameters())
    for parameter, dims in kept.parameters().items():
        for dim, index in dims.items():
            dropped = torch.ones(grads[parameter].shape[dim], dtype=torch.bool)
            dropped[index] = False
            assert not grads[parameter].movedim(dim, 0)[dropped].any()
            assert grads[parameter].movedim(dim, 0)[index].any()


# -- real size -----------------------------------------------------------------------------------------------------


def whole_is_the_original(model: nn.Module, ids: torch.Tensor) -> None:
    logits, grads = loss_and_gradients(model, ids)
    model = estfx.transform(model, WHOLE, compile=False)
    model.set_step(0)
    new_logits, new_grads = loss_and_gradients(model, ids)
    assert torch.equal(logits, new_logits)
    assert [n for n in grads if not torch.equal(grads[n], new_grads[n])] == []


@pytest.mark.sweep(day=1, days=2)
def test_gpt2_base_whole_is_the_original_to_the_bit() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).train()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    whole_is_the_original(model, torch.randint(50257, (2, 64)))


@pytest.mark.slow
def test_tinyllama_whole_is_the_original_to_the_bit() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    model = LlamaForCausalLM(config).train()
    assert sum(p.numel() for p in model.parameters()) == 1_100_048_384
    whole_is_the_original(model, torch.randint(32000, (1, 32)))
