"""Small versions of model types, for a training run of minutes on a laptop. The one place that names types."""

from collections.abc import Mapping
from typing import Any

from estfx.training.model_spec import default_values, known_options

__all__ = ["small_options"]

_SMALL: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_layer": 6, "n_embd": 256, "n_head": 8},
    "llama": {
        "num_hidden_layers": 6,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
}

# for every other type: those of the names that its configuration knows
_ANY: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 704,
    "ffn_dim": 1024,
    "word_embed_proj_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


def small_options(model_type: str, *, vocab_size: int, seq_len: int, end_of_text: int) -> dict[str, Any]:
    """Configuration values of a small model of the type: for a vocabulary and a length, without dropout."""
    known = known_options(model_type)
    options: dict[str, Any] = dict(_SMALL.get(model_type, _ANY))
    options |= {
        "vocab_size": vocab_size,
        "max_position_embeddings": seq_len,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "use_cache": False,
    }
    options |= {
        name: 0.0
        for name, value in default_values(model_type).items()
        if ("dropout" in name or "pdrop" in name) and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name: value for name, value in options.items() if name in known}
