"""Which configuration says a cut: the right shapes are not enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens
from transformers import LlamaConfig, LlamaForCausalLM

import estfx


def halves(model: Any) -> dict[str, dict[str, list[int]]]:
    return {
        layer.name: {axis.role: list(range(axis.size // 2)) for axis in layer.axes if axis.role == "heads"}
        for layer in estfx.inspect(model).layers
    }


def test_half_the_head_size_has_the_shapes_of_half_the_heads_and_is_not_taken() -> None:
    model = build("llama", num_attention_heads=4, num_key_value_heads=4, hidden_size=48).eval()
    made = estfx.cut(model, halves(model))
    assert (made.config.num_attention_heads, made.config.head_dim) == (2, 12)
    by_head_size = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "head_dim": 6}))
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (made, by_head_size)]
    assert shapes[0] == shapes[1]


def test_a_configuration_that_is_refused_leaves_the_numbers() -> None:
    """A Llama of 40 hidden units has no 3 heads for transformers, which asks for a multiple."""
    model = build("llama", num_attention_heads=5, num_key_value_heads=5, hidden_size=40).eval()
    made = estfx.cut(model, {f"model.layers.{i}": {"heads": [0, 2, 4]} for i in range(3)})
    assert estfx.cut_record(made).form == "attributes"
    assert torch.isfinite(made(tokens()).logits).all()


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_size_that_is_not_given_is_set(name: str) -> None:
    """GPT-2 leaves `n_inner` to be four times the hidden size."""
    model = build(name).eval()
    before = dict(vars(model.config))
    neurons = estfx.inspect(model).layers[0].axes[-1].size
    made = estfx.cut(model, {x.name: {"neurons": range(neurons // 4)} for x in estfx.inspect(model).layers})
    assert estfx.cut_record(made).form == "configuration"
    assert [str(e) for e in estfx.cut_record(made).edits] == [
        f"{'n_inner' if name == 'gpt2' else 'ffn_dim'} = {neurons // 4}"
    ]
    assert vars(model.config) == before
