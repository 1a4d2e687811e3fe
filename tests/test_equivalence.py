"""The oracles on whole models, by means of their own: torch modules, masks put into weights, counted FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from architectures import DECODERS, build, tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import estfx
from estfx.schedule import Schedule
from estfx.stage import Stage

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
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


class EverythingDouble(TorchDispatchMode):
    """Casts to a smaller floating-point type, which some models' own code holds, go to float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and getattr(kwargs.get("dtype"), "is_floating_point", False):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


# -- a subnetwork is the masked whole ------------------------------------------------------------------------------

# Where the heads and the neurons close, by architecture: (submodule of the layer, is it a Conv1D with its input first).
CLOSING = {
    "gpt2": ("attn.c_proj", "mlp.c_proj", True),
    "llama": ("self_attn.o_proj", "mlp.down_proj", False),
    "llama_grouped": ("self_attn.o_proj", "mlp.down_proj", False),
    "opt": ("self_attn.out_proj", "fc2", False),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h", False),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", False),
    "gptj": ("attn.out_proj", "mlp.fc_out", False),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h", False),
    "falcon_new": ("self_attention.dense", "mlp.dense_4h_to_h", False),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", False),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj", False),
    "olmo2": ("self_attn.o_proj", "mlp.down_proj", False),
}


def mask_of(kept: torch.Tensor, units: int, inputs: int) -> torch.Tensor:
    """`total / kept` at the inputs of the kept units, which lie next to each other unit by unit, and 0 elsewhere."""
    mask = torch.zeros(units, inputs // units, dtype=torch.float64)
    mask[kept] = units / len(kept)
    return mask.reshape(-1)


@contextmanager
def masked(
    model: nn.Module, name: str, subnetwork: estfx.Subnetwork, sizes: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The original model with its closing weights masked, dropped layers taken out, and statistics over kept parts."""
    heads, neurons, conv1d = CLOSING[name]
    masks: dict[str, torch.Tensor] = {}
    handles = []
    for layer_name, runs in subnetwork.layers.items():
        layer = model.get_submodule(layer_name)
        if not runs:
            layer.forward = lambda x, *args, _like=name, **kwargs: skipped(x, _like)
            continue
        for role, path in (("heads", heads), ("neurons", neurons)):
            weight = layer.get_submodule(path).weight
            kept = subnetwork.units[layer_name][role]
            mask = mask_of(kept, sizes[role], weight.shape[0 if conv1d else 1])
            masks[f"{layer_name}.{path}.weight"] = mask[:, None] if conv1d else mask[None, :]
            weight.data.mul_(masks[f"{layer_name}.{path}.weight"])
        if name == "olmo2":  # its queries and keys are normalised over all heads
            kept = subnetwork.units[layer_name]["heads"]
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                handles.append(norm.register_forward_hook(over_kept_part(kept, sizes["heads"])))
    yield masks
    for handle in handles:
        handle.remove()


def skipped(x: torch.Tensor, name: str) -> Any:
    return (x, None) if name in ("bloom", "gptj", "falcon", "falcon_new") else x


def over_kept_part(kept: torch.Tensor, units: int) -> Any:
    def hook(norm: nn.Module, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
        (x,) = args
        chosen = torch.zeros(units, x.shape[-1] // units, dtype=torch.bool)
        chosen[kept] = True
        index = chosen.reshape(-1).nonzero()[:, 0]
        part = x[..., index]
        part = part * torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return torch.zeros_like(result).index_copy(-1, index, (norm.weight[index] * part).to(x.dtype))

    return hook


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
