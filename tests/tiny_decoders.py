"""Tiny random decoders of structurally different kinds. Their sizes differ from each other where they can."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCABULARY = 101


def from_transformers(model_type: str, **values: Any) -> nn.Module:
    """A model of the registry, with every dropout of its configuration off."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type, **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **values}
    )
    for key, value in list(vars(config).items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return AutoModelForCausalLM.from_config(config)


GPT2 = {"n_layer": 3, "n_embd": 40, "n_head": 5, "n_positions": 64}
WIDE = {"num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 5}
GROUPED = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 56,
}

# name: (model type, configuration values, units of heads that can be drawn)
DECODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "gpt2": ("gpt2", GPT2, 5),
    "llama": ("llama", {**GROUPED, "num_key_value_heads": 6}, 6),
    "llama_grouped": ("llama", GROUPED, 3),
    "opt": ("opt", {**WIDE, "ffn_dim": 56, "word_embed_proj_dim": 40, "max_position_embeddings": 64}, 5),
    "bloom": ("bloom", {"n_layer": 3, "hidden_size": 40, "n_head": 5}, 5),
    "gpt_neox": ("gpt_neox", {**WIDE, "intermediate_size": 56}, 5),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}, 5),
    "falcon": ("falcon", {**WIDE, "multi_query": True}, 5),
    "falcon_new": (
        "falcon",
        {
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "new_decoder_architecture": True,
        },
        3,
    ),
    "phi3": ("phi3", {**GROUPED, "pad_token_id": 0}, 3),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 8}, 3),
    "olmo2": ("olmo2", GROUPED, 3),
}


def depth(name: str, layers: int) -> dict[str, int]:
    """The value of a decoder's configuration that gives it so many layers."""
    return {"n_layer" if "n_layer" in DECODERS[name][1] else "num_hidden_layers": layers}


def build(name: str, **overrides: Any) -> nn.Module:
    """The model, in training mode, the same weights at every call."""
    torch.manual_seed(0)
    model_type, values, _ = DECODERS[name]
    return from_transformers(model_type, **{**values, **overrides}).train()


def tokens(batch: int = 2, length: int = 19, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
