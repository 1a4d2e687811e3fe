"""The LM head and the cross-entropy as one operation that never holds all logits, by torch's `linear_cross_entropy`.

While the model trains on labels, its LM head gives `DeferredLogits`: the hidden states, and a promise. The loss of
transformers' causal language models takes them as they are; whatever else looks at them, a scaling or a soft-cap of the
model's own code for one, gets the logits, computed then, and the loss is the usual one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError
from estfx.graphs import autocasts
from estfx.tracing import ASKING

__all__ = ["DeferredLogits", "check_fusible", "deferred_logits", "fused"]


class DeferredLogits(torch.Tensor):
    """`[..., vocabulary]`, computed when something reads them."""

    hidden: torch.Tensor  # [..., width]
    head: nn.Linear

    @staticmethod
    def __new__(cls, hidden: torch.Tensor, head: nn.Linear) -> DeferredLogits:
        shape = (*hidden.shape[:-1], head.out_features)
        made: DeferredLogits = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=torch.result_type(hidden, head.weight), device=hidden.device
        )
        made.hidden, made.head = hidden, head
        return made

    @functools.cached_property
    def computed(self) -> torch.Tensor:
        return F.linear(self.hidden, self.head.weight, self.head.bias)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeferredLogits({tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = _computed((args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = _computed((args, kwargs or {}))
        return func(*args, **kwargs)


def _computed(tree: Any) -> Any:
    return pytree.tree_map_only(DeferredLogits, lambda logits: logits.computed, tree)


def check_fusible(model: nn.Module) -> None:
    """Raises EstfxError if a model's loss cannot be fused with its LM head."""
    if not hasattr(F, "linear_cross_entropy"):
        raise EstfxError(
            f"fuse_loss needs torch.nn.functional.linear_cross_entropy, which torch {torch.__version__} has not; "
            "torch 2.13 has it."
        )
    if not isinstance(getattr(type(model), "loss_function", None), property) or _head_of(model) is None:
        raise EstfxError(
            f"fuse_loss is for causal language models of transformers whose LM head is one nn.Linear; "
            f"`{type(model).__name__}` is none."
        )


def _head_of(model: Any) -> nn.Linear | None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head if type(head) is nn.Linear else None  # an adapter's or a sharded one has a class of its own


@contextmanager
def deferred_logits(model: nn.Module) -> Iterator[None]:
    """Within it, the model's LM head promises its logits."""
    head = _head_of(model)
    if head is None or "forward" in vars(head):
        yield
        return
    head.__dict__["forward"] = lambda hidden: DeferredLogits(hidden, head)
    try:
        yield
    finally:
        del head.__dict__["forward"]


def fused(loss_function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The loss of transformers' causal language models, which takes deferred logits; any other as it is."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    if loss_function is not ForCausalLMLoss:
        return loss_function
    return _causal_loss


def _causal_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **options: Any) -> torch.Tensor:
    """As transformers' ForCausalLMLoss: the mean over the labels, or their sum divided by `num_items_in_batch`."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    if not isinstance(logits, DeferredLogits) or logits.head.out_features != vocab_size:
        return ForCausalLMLoss(logits, labels, vocab_size, **options)
    ignored, number = options.get("ignore_index", -100), options.get("num_items_in_batch")
    shifted = options.get("shift_labels")
    if shifted is None:
        shifted = F.pad(labels, (0, 1), value=ignored)[..., 1:]
    hidden, weight = logits.hidden.reshape(-1, logits.hidden.shape[-1]), logits.head.weight
    if autocasts(hidden.device.type):  # which does not know this operation
        low = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(low), weight.to(low)
    shifted = shifted.reshape(-1).to(hidden.device)
    # A single bfloat16 would hold three digits of the loss: there each token's is rounded, and their sum is not. That
    # costs one more product in the backward pass.
    low_precision = hidden.dtype in (torch.bfloat16, torch.float16)
    loss = F.linear_cross_entropy(
        hidden,
        weight,
        shifted,
        linear_bias=logits.head.bias,
        reduction="none" if low_precision else "sum",
        ignore_index=ignored,
        options=nn.LinearCrossEntropyOptions(),
    )
    if low_precision:
        loss = loss.float().sum()
    mean: torch.Tensor = loss / (number if number is not None else (shifted != ignored).sum())
    return mean
