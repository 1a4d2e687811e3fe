"""The oracle of a cut: the whole model, each of whose layers computes with its kept units only, or is passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.cutting.layer_parts import LayerPart
from estfx.errors import EstfxError
from estfx.programs import Variant
from estfx.scoring import LayerForward, layer_forwards, passing
from estfx.tracing import Decoder, call_arguments, in_mode, open_dataclasses, without_cache

__all__ = ["as_masked_whole", "cached_outputs_of", "leaves_of", "outputs_of", "worst_difference"]


@contextmanager
def as_masked_whole(
    decoder: Decoder, variants: Mapping[str, Variant], parts: Mapping[str, LayerPart], dropped: Collection[str]
) -> Iterator[None]:
    """While it lasts, the layers compute with what is kept of them. For calls as those of the example inputs."""
    forwards = {
        name: passing(variants[info.program]) if name in dropped else _narrowed(parts[name])
        for name, info in decoder.infos.items()
    }
    with layer_forwards(decoder, forwards):
        yield


def _narrowed(part: LayerPart) -> LayerForward:
    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return part.values(part.graph, module, args, kwargs)

    return call


def outputs_of(model: nn.Module, example_inputs: object) -> list[torch.Tensor]:
    """All floating-point tensors that the model gives for the example inputs, in eval mode."""
    args, kwargs = call_arguments(model, example_inputs)
    with in_mode(model, training=False), torch.no_grad():
        given = model(*args, **without_cache(model, kwargs))
    found = [x for x in leaves_of(given) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if not found:
        raise EstfxError(f"`{type(model).__name__}` gives no floating-point tensor to be compared.")
    return found


def cached_outputs_of(model: nn.Module, example_inputs: object) -> torch.Tensor | None:
    """The last logits for token ids `[batch, length]`, of which all but one came before, by the KV cache.

    A model that returns no cache may hold another state of its own, which its `generate` knows how to use. None for
    other inputs.
    """
    args, kwargs = call_arguments(model, example_inputs)
    ids = kwargs.get("input_ids")
    if args or set(kwargs) != {"input_ids"} or ids is None or ids.shape[1] < 2 or not hasattr(model, "generate"):
        return None
    with in_mode(model, training=False), torch.no_grad():
        first = model(input_ids=ids[:, :-1], use_cache=True)
        cache = getattr(first, "past_key_values", None)
        if cache is None:
            return _generated(model, ids)
        logits: torch.Tensor = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        return logits


def _generated(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits behind the last of the tokens, to which `generate` comes by itself."""
    found = model.generate(
        ids[:, :-1],
        attention_mask=torch.ones_like(ids[:, :-1]),
        prefix_allowed_tokens_fn=lambda row, _: [int(ids[row, -1])],
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    last: torch.Tensor = found.logits[1]
    return last


def leaves_of(value: Any) -> list[Any]:
    """What is in a result, however nested."""
    open_dataclasses(value)
    return pytree.tree_leaves(value)


def worst_difference(want: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The largest error, relative to the largest value of each tensor; infinite for other shapes."""
    if [x.shape for x in want] != [x.shape for x in got]:
        return float("inf")
    worst = 0.0
    for w, g in zip(want, got, strict=True):
        if w.numel():
            error = float((w.double() - g.double()).abs().max() / w.double().abs().max().clamp(min=1e-12))
            worst = max(worst, error) if error == error else float("inf")
    return worst
