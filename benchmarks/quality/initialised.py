"""GPT-2 and Llama with each other's initialisation of the projections that close a branch: a factory each.

GPT-2 divides them by √(2 · layers), Llama does not. So a comparison of the two families alone is one of two things at
once. `estfx train` takes a factory as `benchmarks/quality/initialised.py:gpt2_undivided`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

__all__ = ["gpt2_undivided", "llama_divided"]


def gpt2_undivided(**options: Any) -> GPT2LMHeadModel:
    """A GPT-2 whose closing projections are initialised like all others."""
    model = GPT2LMHeadModel(GPT2Config(**options))
    for block in model.transformer.h:
        _scale(block.attn.c_proj, block.mlp.c_proj, by=math.sqrt(2 * len(model.transformer.h)))
    return model


def llama_divided(**options: Any) -> LlamaForCausalLM:
    """A Llama whose closing projections are divided by √(2 · layers) at first."""
    model = LlamaForCausalLM(LlamaConfig(**options))
    for layer in model.model.layers:
        _scale(layer.self_attn.o_proj, layer.mlp.down_proj, by=1 / math.sqrt(2 * len(model.model.layers)))
    return model


def _scale(*projections: nn.Module, by: float) -> None:
    with torch.no_grad():
        for projection in projections:
            projection.get_parameter("weight").mul_(by)
