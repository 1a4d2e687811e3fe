"""Layers whose parameters FSDP2 keeps in shards: put together for as long as their graph is made and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from estfx.tracing.exporting import split_parameters

__all__ = ["left_sharded", "unsharded"]


@contextmanager
def unsharded(model: nn.Module, path: str) -> Iterator[None]:
    """The parameters of the model's layer at that path are whole tensors. To be entered on all ranks."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    layer = model.get_submodule(path)
    if fsdp is None:  # then nothing can have been sharded by it
        yield
        return
    names = path.split(".")
    around = [model.get_submodule(".".join(names[:length])) for length in range(len(names))]
    opened: list[Any] = []
    try:
        for module in (*layer.modules(), *reversed(around)):  # the nearest group of parameters first
            if isinstance(module, fsdp.FSDPModule) and _is_sharded(layer):
                module.unshard()
                opened.append(module)
        yield
    finally:
        for module in opened:
            module.reshard()


@contextmanager
def left_sharded(model: nn.Module) -> Iterator[None]:
    """Afterwards every parameter is in shards again. A forward pass alone leaves the root's whole: an optimizer that is
    then made of `model.parameters()` would update tensors that nothing reads.
    """
    try:
        yield
    finally:
        fsdp: Any = sys.modules.get("torch.distributed.fsdp")
        for module in model.modules() if fsdp is not None else ():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def _is_sharded(layer: nn.Module) -> bool:
    return next(split_parameters(layer), None) is not None
