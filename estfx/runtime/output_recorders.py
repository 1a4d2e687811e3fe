"""Hooks with which transformers records what layers return, for `output_hidden_states`.

A layer that is skipped runs none of its hooks. These alone do nothing but keep what they see, and a result without the
layer's entry would have another length and meaning. So they are shown what the layer passes on.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["tell_recorders"]

RECORDERS = "transformers.utils.output_capturing"  # the module whose hooks they are


def tell_recorders(layer: nn.Module, args: tuple[Any, ...], result: Any) -> None:
    """Calls the recording hooks of a layer that was skipped."""
    for hook in layer._forward_hooks.values():
        if getattr(hook, "__module__", None) == RECORDERS:
            hook(layer, args, result)
