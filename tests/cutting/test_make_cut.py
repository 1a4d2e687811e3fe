"""A cut is the masked whole: outputs, loss, gradients and generated tokens; and it is an ordinary model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Chain, SoftExperts
from masked_decoders import EverythingDouble, masked
from tiny_decoders import DECODERS, build, tokens
from torch import nn

import estfx
from estfx.schedules import Schedule, Stage

HALVES = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.67), Stage(start=10)])
ALIBI = {"bloom"}  # its biases by position are made for a number of heads, not for those that stay


def perturbed(name: str) -> Any:
    """In float64; nothing is zero, nothing one."""
    model = build(name).double()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def loss_and_gradients(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with EverythingDouble():
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.sweep("name", days=4)
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ALIBI])
def test_a_cut_is_the_masked_whole(name: str) -> None:
    original = perturbed(name)
    model = estfx.transform(copy.deepcopy(original), HALVES, compile=False, seed=3)
    model.set_step(0)
    kept = model.subnetwork
    made = estfx.cut(model, kept)
    assert type(made) is type(original)
    ids = tokens()
    logits, grads = loss_and_gradients(made, ids)
    sizes = {axis.role: axis.size for axis in model.report.layers[0].axes}
    with masked(original, name, kept, sizes):
        want, want_grads = loss_and_gradients(original, ids)
    assert (logits - want).abs().max() <= 1e-10 * want.abs().max()
    running = [layer for layer, runs in kept.layers.items() if runs]
    parameters = kept.parameters()
    largest = max(g.abs().max() for g in want_grads.values())
    compared = 0
    for parameter, gradient in want_grads.items():
        layer = next((each for each in kept.layers if parameter.startswith(f"{each}.")), None)
        if layer is not None and layer not in running:
            continue
        for dim, index in parameters.get(parameter, {}).items():
            gradient = gradient.index_select(dim, index)
        here = parameter
        if layer is not None:
            path, _, number = layer.rpartition(".")
            here = parameter.replace(f"{layer}.", f"{path}.{running.index(layer)}.", 1)
            assert number.isdecimal()
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert (grads[here] - gradient).abs().max() <= 1e-10 * scale, parameter
        compared += 1
    assert compared == len(grads)


@pytest.mark.sweep("name", days=4)
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ALIBI])
def test_it_writes_the_same_with_a_cache_and_without(name: str) -> None:
    model = build(name).eval()
    made = estfx.cut(model, every_other_unit(model))
    given = tokens()[:, :6]
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        first, second = (made.generate(given, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(first, second)


def every_other_unit(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    report = estfx.inspect(model)
    return {x.name: {axis.role: list(range(0, axis.size, 2)) for axis in x.axes} for x in report.layers}


def test_a_configuration_says_it_all_for_llama_and_numbers_for_gpt2() -> None:
    llama, gpt2 = build("llama_grouped"), build("gpt2")
    made = estfx.cut(llama, every_other_unit(llama), layers=["model.layers.0", "model.layers.2"])
    record = estfx.cut_record(made)
    assert record.form == "configuration"
    config = made.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (4, 2, 28)
    assert (config.num_hidden_layers, config.head_dim, config.hidden_size) == (2, 8, 48)
    assert record.dropped == ("model.layers.1",)
    assert estfx.cut_record(estfx.cut(gpt2, {"transformer.h.1": {"heads": [0, 3]}})).form == "attributes"


def test_layers_may_differ_in_width() -> None:
    model = build("llama").eval()
    units = {"model.layers.0": {"heads": [1], "neurons": [0, 5, 9]}, "model.layers.2": {"neurons": list(range(20))}}
    made = estfx.cut(model, units)
    assert [layer.mlp.down_proj.in_features for layer in made.model.layers] == [56, 56, 56]  # is read by nothing
    assert [tuple(layer.mlp.down_proj.weight.shape) for layer in made.model.layers] == [(48, 3), (48, 56), (48, 20)]
    assert estfx.cut_record(made).form == "attributes"
    assert estfx.cut_record(made).error <= 1e-6


def test_the_original_stays_as_it_is_unless_it_is_to_become_the_cut() -> None:
    model = build("gpt2")
    before = copy.deepcopy(model.state_dict())
    made = estfx.cut(model, every_other_unit(model), dtype=torch.bfloat16)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    shared = {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared
    assert made.lm_head.weight is made.transformer.wte.weight
    again = estfx.cut(model, every_other_unit(model), in_place=True)
    assert again is model
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in made.parameters())
    ids = tokens()
    assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_a_cut_has_the_parameters_and_flops_that_the_plan_says() -> None:
    model = build("llama_grouped")
    keep = Schedule(stages=[Stage(start=0, heads=0.34, neurons=0.5, layers=0.67)], total_steps=10)
    stage = estfx.plan(model, keep, batch_size=2, seq_len=16).stages[0]
    model = estfx.transform(model, keep, compile=False)
    model.set_step(0)
    made = estfx.cut(model, model.subnetwork)
    whole = estfx.plan(made, Schedule(stages=[Stage(start=0)], total_steps=10), batch_size=2, seq_len=16).stages[0]
    assert whole.flops_model == stage.flops_model
    assert whole.parameters == stage.parameters


def test_on_the_meta_device_a_configuration_is_found_by_shapes_alone() -> None:
    with torch.device("meta"):
        model = build("llama_grouped")
    made = estfx.cut(model, every_other_unit(model))
    assert made.config.num_key_value_heads == 2
    assert estfx.cut_record(made).error == -1
    assert {p.device.type for p in made.parameters()} == {"meta"}
    with torch.device("meta"):
        model = build("gpt2")
    with pytest.raises(estfx.UnsupportedModelError, match="its weights are on the meta device"):
        estfx.cut(model, every_other_unit(model))


def test_heads_with_biases_by_position_are_refused_with_a_reason() -> None:
    model = build("bloom")
    with pytest.raises(estfx.UnsupportedModelError, match="such as a bias of each head by position"):
        estfx.cut(model, {f"transformer.h.{i}": {"heads": [0, 1, 4]} for i in range(3)})
    made = estfx.cut(model, {"transformer.h.1": {"neurons": list(range(100))}})
    assert estfx.cut_record(made).error <= 1e-6


@pytest.mark.parametrize(
    ("units", "layers", "said"),
    [
        ({"model.layers.9": {}}, None, "names layer `model.layers.9`, which this model has not got. It has `model.l"),
        ({"model.layers.0": {"experts": [0]}}, None, r"has no experts; it has heads \(3\), neurons \(56\)"),
        ({"model.layers.0": {"heads": [3]}}, None, "has 3 heads, from 0 to 2; there is no 3"),
        ({"model.layers.0": {"heads": [-1, 0]}}, None, "there is no -1"),
        ({"model.layers.0": {"heads": []}}, None, "one at least, from 0 to 2"),
        ({"model.layers.0": {"heads": [1, 1]}}, None, "name a unit twice"),
        ({"model.layers.0": {"heads": 0.5}}, None, "are a list of their indices"),
        ({}, [], "no layer is to stay"),
        ({}, ["model.layer.0"], "`layers` names layer `model.layer.0`"),
        (0.5, None, "takes a Subnetwork, such as model.subnetwork, or units"),
    ],
)
def test_what_does_not_exist_is_refused(units: Any, layers: Any, said: str) -> None:
    with pytest.raises(estfx.EstfxError, match=said):
        estfx.cut(build("llama_grouped"), units, layers=layers)


def test_a_subnetwork_of_another_model_is_refused() -> None:
    model = estfx.transform(build("gpt2"), HALVES, compile=False)
    model.set_step(0)
    with pytest.raises(estfx.EstfxError, match="which this model has not got"):
        estfx.cut(build("llama"), model.subnetwork)
    with pytest.raises(estfx.EstfxError, match="leave out `layers`"):
        estfx.cut(model, model.subnetwork, layers=["transformer.h.0"])
    with pytest.raises(estfx.UnsupportedModelError, match="nothing that estfx"):
        estfx.cut_record(model)


def test_a_subnetwork_of_a_layer_with_a_role_that_stays_whole_is_cut_by_the_names_that_it_has() -> None:
    """Soft experts are units that verification takes out; what comes after them keeps its name."""
    torch.manual_seed(0)
    model = Chain(SoftExperts(), SoftExperts()).double()
    x = (torch.randn(2, 8, HIDDEN, dtype=torch.float64),)
    schedule = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5)])
    evolving = estfx.transform(copy.deepcopy(model), schedule, example_inputs=x, compile=False).train()
    evolving.set_step(0)
    small = estfx.cut(evolving, evolving.subnetwork, example_inputs=x)
    torch.testing.assert_close(small.train()(*x), evolving(*x), rtol=1e-10, atol=1e-12)
