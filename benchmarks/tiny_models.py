"""Every causal language model type of transformers as a tiny random model, with all of its mechanisms still in it.

Most types take what they know of `GENERIC`; those that need values of their own have them in `tiny_values.SPECIFIC`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny_values import SPECIFIC
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    SiglipVisionConfig,
)

__all__ = ["EXPERTS", "GENERIC", "tiny_config", "tiny_model"]

# Tiny values for the names that configurations use; each type takes those that it knows. Widths are multiples of 4, and
# those of experts of 8: grouped matrix products want rows of 16 bytes, in bfloat16 too.
GENERIC: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "n_embd": 48,
    "d_model": 48,
    "embedding_size": 48,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "num_attention_heads": 6,
    "n_head": 6,
    "n_heads": 6,
    "num_key_value_heads": 3,
    "num_kv_heads": 3,
    "head_dim": 8,
    "intermediate_size": 56,
    "ffn_dim": 56,
    "d_ff": 56,
    "n_inner": 56,
    "ffn_hidden_size": 56,
    "decoder_layers": 3,
    "encoder_layers": 3,
    "decoder_attention_heads": 6,
    "encoder_attention_heads": 6,
    "decoder_ffn_dim": 56,
    "encoder_ffn_dim": 56,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 20,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_heads": 6,
    "linear_head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Taken only where the type's default is a number: None means that the type does without.
WHERE_USED: dict[str, int] = {
    "sliding_window": 8,
    "sliding_window_size": 8,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# How a list with one kind for each layer is shortened: kinds of mixers alternate, kinds of MLPs stay at the last.
CYCLED, PADDED = ("layer_types", "indexer_types"), ("mlp_layer_types",)
EXPERTS = ("eager", "batched_mm", "grouped_mm")  # transformers' ExpertsInterface


# Composite models whose causal language model is built from the configuration of one part.
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}


def _configuration(model_type: str, **values: Any) -> Any:
    if model_type in PARTS:
        return CONFIG_MAPPING[model_type].sub_configs[PARTS[model_type]](**values)
    return AutoConfig.for_model(model_type, **values)


def tiny_config(model_type: str, experts: str | None = None) -> Any:
    """The type's configuration, made tiny, with every dropout off.

    `experts` chooses the implementation of mixtures of experts: one of `EXPERTS`; None leaves transformers' choice.
    """
    specific = SPECIFIC.get(model_type, {})
    try:
        default = _configuration(model_type)
    except Exception:  # its defaults contradict each other: what it needs is all in `specific`
        config = _configuration(model_type, **copy.deepcopy(specific))
    else:
        config = _configuration(model_type, **_values(default, specific))
    if model_type == "gemma3n":
        _replace_vision_tower(config)
    if experts is not None:
        config._experts_implementation = experts  # and of its parts
    return config


def tiny_model(model_type: str, experts: str | None = None) -> nn.Module:
    """The type's causal language model with random weights, in training mode."""
    torch.manual_seed(0)
    config = tiny_config(model_type, experts)
    with _all_layers_may_share_keys(config):
        if model_type in PARTS:
            model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
            model: nn.Module = model_class._from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
    _perturb_constants(model)
    return model.train()


def _perturb_constants(model: nn.Module) -> None:
    """Noise on the parameters that start as constants: a weight of zeros hides what depends on it."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
            parameter.data.add_(0.05 * torch.randn_like(parameter))


def _values(default: PretrainedConfig, specific: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a configuration tiny, each under its own name, not under an alias."""

    def own(name: str) -> str:
        return default.attribute_map.get(name, name)

    known = set(vars(default))
    values = {own(name): value for name, value in GENERIC.items() if own(name) in known}
    if "kv_lora_rank" in known:  # latent attention: every head has a key and a value
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            values[name] = {"model_type": value.model_type, **_values(value, specific.get(name, {}))}
        elif "drop" in name and isinstance(value, float):
            values[name] = 0.0
        elif name in WHERE_USED and value:
            values[name] = WHERE_USED[name]
    chosen = {own(name): value for name, value in specific.items() if not isinstance(values.get(name), dict)}
    layers = {**values, **chosen}.get("num_hidden_layers", 3)
    for name in (*CYCLED, *PADDED):
        kinds = vars(default).get(name)
        if isinstance(kinds, (list, tuple)):
            values[name] = _shortened(list(dict.fromkeys(kinds)), layers, name in CYCLED)
    return {**values, **copy.deepcopy(chosen)}


def _shortened(kinds: list[str], layers: int, cycled: bool) -> list[str]:
    return [kinds[i % len(kinds) if cycled else min(i, len(kinds) - 1)] for i in range(layers)]


def _replace_vision_tower(config: Any) -> None:
    """Its vision tower comes from another package, timm; no image is shown to it, so any other tiny tower will do."""
    own = config.vision_config
    tower = SiglipVisionConfig(hidden_size=48, intermediate_size=56, num_hidden_layers=1, num_attention_heads=6)
    for name in ("rms_norm_eps", "vocab_offset", "vocab_size"):
        setattr(tower, name, getattr(own, name))
    vars(config)["vision_config"] = tower


@contextmanager
def _all_layers_may_share_keys(config: Any) -> Iterator[None]:
    """Lets assistants be built, none of whose layers makes keys of its own: transformers 5.23 refuses them."""
    text: Any = type(getattr(config, "text_config", None))
    before = vars(text).get("kv_sharing_modes")
    if not config.model_type.endswith("_assistant") or before is None:
        yield
        return

    def modes(self: Any) -> list[str | None]:
        return ["reuse"] * self.num_hidden_layers

    text.kv_sharing_modes = property(modes)
    try:
        yield
    finally:
        text.kv_sharing_modes = before
