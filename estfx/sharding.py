"""Layers whose parameters FSDP2 keeps in shards: put together for as long as their graph is made and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["unsharded"]


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


def _is_sharded(layer: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in layer.parameters())
