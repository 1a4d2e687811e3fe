"""Example inputs for the tiny models: token ids, and what some types want beside or instead of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["example_inputs"]

Inputs = dict[str, Any]
BATCH, SEQUENCE = 3, 17  # primes, so that no size is mistaken for another
ENCODED = 13  # positions of what a decoder attends to across
# Sequences must be a multiple of a chunk.
LENGTHS = {"reformer": 16, "xlstm": 20}
# Decoders of encoder-decoder models: their cross-attention runs only if there is something to attend to.
CROSS_ATTENDING = {"bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "mvp"}
CROSS_ATTENDING |= {"pegasus", "plbart", "prophetnet", "trocr"}


def example_inputs(model_type: str, model: nn.Module, batch: int = BATCH, seed: int = 0) -> Inputs:
    """Keyword arguments of the model's forward, on the CPU: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sequence = LENGTHS.get(model_type, SEQUENCE)
    config: Any = model.config
    tokens = torch.randint(3, _vocabulary(config), (batch, sequence), generator=generator)
    inputs: Inputs = {"input_ids": tokens}
    if model_type in CROSS_ATTENDING:
        inputs["encoder_hidden_states"] = torch.randn(batch, ENCODED, config.hidden_size, generator=generator)
    if model_type in SPECIAL:
        inputs = SPECIAL[model_type](config, inputs, generator)
    return inputs


def _vocabulary(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size: int = text.vocab_size
    return size


def _assistant(config: Any, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Hidden states and embeddings of the model that it assists, and that model's keys and values."""
    batch, sequence = inputs["input_ids"].shape
    text = config.text_config
    states = {}
    for index, kind in enumerate(text.layer_types):
        layer = text.per_layer_config[index]  # head sizes differ between kinds
        shape = (batch, layer.num_key_value_heads, sequence, layer.head_dim)
        states[kind] = tuple(torch.randn(shape, generator=generator) for _ in range(2))
    return {
        "inputs_embeds": torch.randn(batch, sequence, 2 * config.backbone_hidden_size, generator=generator),
        "position_ids": torch.arange(sequence)[None],
        "shared_kv_states": states,
        # without it, transformers 5.23 shortens inputs for each layer that this model has not got
        "output_hidden_states": True,
    }


def _codebooks(config: Any, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """A row of tokens for each codebook of each sample."""
    batch, sequence = inputs["input_ids"].shape
    shape = (batch * config.num_codebooks, sequence)
    return inputs | {"input_ids": torch.randint(config.vocab_size, shape, generator=generator)}


def _images_attended_to(config: Any, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """States of an image, all of which every token may attend to."""
    batch, sequence = inputs["input_ids"].shape
    return inputs | {
        "cross_attention_states": torch.randn(batch, ENCODED, config.hidden_size, generator=generator),
        "cross_attention_mask": torch.zeros(batch, 1, sequence, ENCODED),
        "full_text_row_masked_out_mask": torch.ones(batch, 1, sequence, 1),
    }


def _audio_attended_to(config: Any, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """States of an encoder under another name."""
    batch = inputs["input_ids"].shape[0]
    return inputs | {"encoder_outputs": (torch.randn(batch, ENCODED, config.hidden_size, generator=generator),)}


SPECIAL: dict[str, Callable[[Any, Inputs, torch.Generator], Inputs]] = {
    "gemma4_assistant": _assistant,
    "gemma4_unified_assistant": _assistant,
    "mllama": _images_attended_to,
    "musicgen": _codebooks,
    "musicgen_melody": _codebooks,
    "whisper": _audio_attended_to,
}
