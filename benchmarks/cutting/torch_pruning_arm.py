"""The same models, pruned by Torch-Pruning 1.6.1 (`pip install --no-deps torch-pruning==1.6.1`).

It is used as its own example for language models uses it, and told what that example tells it: the heads, by the names
of their projections, and afterwards the numbers that the model's code reads. GPT-2's projections are of a class that it
does not know, so they are made `nn.Linear` first.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from trained import Batches, in_layers, loss_of
from transformers.pytorch_utils import Conv1D

__all__ = ["ARMS", "pruned", "without_conv1d"]


def without_conv1d(model: Any) -> Any:
    """A copy whose `Conv1D` modules are `nn.Linear` with the same weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Conv1D):
                linear = nn.Linear(*module.weight.shape)
                linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
                setattr(parent, name, linear)
    return model


def importance_of(name: str) -> Any:
    import torch_pruning as tp

    if name == "magnitude":
        return tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    return tp.importance.GroupTaylorImportance(group_reduction="mean")


# name of the arm: (importance, what gets narrower)
ARMS: dict[str, tuple[str, str]] = {
    f"Torch-Pruning, {importance}, {what}": (importance, what)
    for importance in ("magnitude", "Taylor")
    for what in ("heads neurons stream", "heads neurons", "neurons")
}
SECONDS = 60  # a call that takes longer is given up; those that work take less than one


def pruned(model: Any, calibration: Batches, ratio: float, arm: str) -> Any:
    """The largest part of at most `ratio` of the layers' parameters, found by bisection of the share that stays.

    Heads go in whole groups, so that they follow in eighths.
    """
    importance, what = ARMS[arm]
    most = ratio * in_layers(model)
    if in_layers(_pruned(model, calibration, 0.02, importance, what)) > most:  # it fails here, if it does
        raise ValueError(f"it cannot be made as small as {ratio:.0%}")
    low, high, found = 0.02, 1.0, None
    for _ in range(8):
        middle = (low + high) / 2
        part = _pruned(model, calibration, middle, importance, what)
        if in_layers(part) <= most:
            low, found = middle, part
        else:
            high = middle
    return found


def _pruned(model: Any, calibration: Batches, keep: float, importance: str, what: str) -> Any:
    import torch_pruning as tp

    small = copy.deepcopy(model).eval()
    heads = _heads(small)
    ignored = [small.lm_head]
    if "stream" not in what:  # it is left as wide as the table of tokens
        ignored.append(small.get_input_embeddings())
    options: dict[str, Any] = {}
    if "heads" in what:
        gone = 1 - max(1, round(8 * keep)) / 8  # of the eight groups that the models have
        options = {"num_heads": heads, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": gone}
    else:
        ignored += heads
    if importance == "Taylor":
        for batch in calibration:
            loss_of(small, batch).backward()
    with _in_time():
        pruner = tp.pruner.BasePruner(
            small,
            example_inputs={"input_ids": calibration[0]["input_ids"][:1], "use_cache": False},
            importance=importance_of(importance),
            pruning_ratio=1 - keep,
            ignored_layers=ignored,
            output_transform=lambda out: out.logits.sum(),
            **options,
        )
        pruner.step()
    small.zero_grad()
    _update_numbers(small)
    return small


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it does not end in {SECONDS} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _heads(model: Any) -> dict[nn.Module, int]:
    """How many heads the projections hold, by the names that these models give them."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if hasattr(module, "q_proj"):
            heads[module.q_proj] = model.config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = model.config.num_key_value_heads
        elif hasattr(module, "c_attn"):
            heads[module.c_attn] = model.config.n_head
    return heads


def _update_numbers(model: Any) -> None:
    """The numbers that the code reads."""
    for module in model.modules():
        if hasattr(module, "q_proj"):
            groups = module.k_proj.out_features // module.head_dim
            module.num_key_value_groups = module.q_proj.out_features // module.head_dim // groups
        elif hasattr(module, "c_attn"):
            module.split_size = module.c_attn.out_features // 3
            module.num_heads = module.split_size // module.head_dim


def outcome(make: Callable[[], Any]) -> Any:
    """What it makes, or the error as a line."""
    try:
        with torch.enable_grad():
            return make()
    except Exception as error:  # whatever another library raises is a finding
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
