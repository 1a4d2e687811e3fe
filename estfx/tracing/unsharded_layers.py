"""Layers whose parameters FSDP2 keeps in shards: put together for as long as their graph is made and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from estfx.errors import TraceError

__all__ = ["left_sharded", "unsharded"]


@contextmanager
def unsharded(model: nn.Module, path: str) -> Iterator[None]:
    """The parameters of the model's layer at that path are whole tensors. To be entered on all ranks.

    Raises TraceError if one stays split after FSDP2 has put its shards together, as by tensor parallelism.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    layer = model.get_submodule(path)
    if fsdp is None:  # then nothing can have been sharded by it
        _refuse_split(layer, path)
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
        _refuse_split(layer, path)
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
    return next(_split(layer), None) is not None


def _split(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parameters of which a process holds a part, by name."""
    tensor: Any = sys.modules.get("torch.distributed.tensor")
    if tensor is not None:  # else nothing can have been split
        yield from ((name, each) for name, each in layer.named_parameters() if isinstance(each, tensor.DTensor))


def _refuse_split(layer: nn.Module, path: str) -> None:
    for name, parameter in _split(layer):
        mesh = parameter.device_mesh
        over = f"{mesh.size()} processes" + (f" ({', '.join(mesh.mesh_dim_names)})" if mesh.mesh_dim_names else "")
        raise TraceError(
            f"`{path}.{name}` is split over {over} by tensor parallelism, which estfx does not support: a kept unit "
            "may lie on any of them. Train with FSDP2, also over a mesh of two dimensions (HSDP), or with DDP; see "
            "docs/how-to/fsdp2.md."
        )
