"""LitGPT's models, where the package is installed: one class, four families by its configuration.

Its dependencies pin versions that transformers 5 does not take, so it is no extra of estfx. To run these tests:
`pip install --no-deps litgpt==0.5.13 lightning lightning-utilities jsonargparse torchmetrics pytorch-lightning`.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # lightning's, while it is imported
    pytest.importorskip("litgpt", exc_type=ImportError)
    from litgpt.config import Config
    from litgpt.model import GPT

HALF = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10)])
VOCABULARY = 101
SMALL = {"block_size": 32, "n_layer": 3, "n_embd": 40, "head_size": 8, "intermediate_size": 56}
LLAMA: dict[str, Any] = {
    "n_head": 6,
    "n_query_groups": 3,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "bias": False,
}
NEOX: dict[str, Any] = {"n_head": 5, "rotary_percentage": 0.25, "mlp_class_name": "GptNeoxMLP", "bias": True}
GEMMA: dict[str, Any] = {**LLAMA, "mlp_class_name": "GemmaMLP", "scale_embeddings": True}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {  # configuration, heads to be drawn
    "pythia": (NEOX, 5),
    "sequential_neox": ({**NEOX, "parallel_residual": False}, 5),
    "llama": (LLAMA, 3),
    "gemma": ({**GEMMA, "n_query_groups": 1}, 6),
    "gemma2": (
        {
            **GEMMA,
            "post_attention_norm": True,
            "post_mlp_norm": True,
            "attention_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_size": 8,
            "sliding_window_indices": [1, 0, 1],
        },
        3,
    ),
}
MIXTRAL = {**LLAMA, "mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 56}
IDS = torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))


def build(values: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return GPT(Config(vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, **SMALL, **values))


def gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(IDS)
    nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_narrowed_and_its_whole_is_the_original_to_the_bit(family: str) -> None:
    values, heads = FAMILIES[family]
    model = build(values)
    logits, grads = gradients(model)
    model = estfx.transform(model, HALF, example_inputs=(IDS,), compile=False)
    assert [layer.name for layer in model.report.layers] == [f"transformer.h.{i}" for i in range(3)]
    for layer in model.report.layers:
        assert layer.droppable
        assert layer.notes == []  # so a narrowed layer is the masked original in float64
        assert {axis.role: axis.size for axis in layer.axes} == {"heads": heads, "neurons": 56}
    model.set_step(10)
    new_logits, new_grads = gradients(model)
    assert torch.equal(new_logits, logits)
    assert new_grads.keys() == grads.keys()
    assert [name for name in grads if not torch.equal(grads[name], new_grads[name])] == []
    model.set_step(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, grads = gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= grads.keys()
    assert {
        name for layer, runs in model.subnetwork.layers.items() if not runs for name in grads if layer in name
    } == set()
    assert model.subnetwork.parameters().keys() <= changed


@pytest.mark.xfail(raises=TypeError, reason="each expert is given the tokens that chose it: a size that has no number")
def test_experts_that_take_their_tokens_by_index() -> None:
    model = estfx.transform(build(MIXTRAL), HALF, example_inputs=(IDS,), compile=False)
    assert all(layer.droppable for layer in model.report.layers)
