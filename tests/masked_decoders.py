"""The original of a decoder with masks in its weights, which is what a subnetwork must equal: by hand, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import estfx


class EverythingDouble(TorchDispatchMode):
    """Casts to a smaller floating-point type, which some models' own code holds, go to float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and getattr(kwargs.get("dtype"), "is_floating_point", False):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


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
