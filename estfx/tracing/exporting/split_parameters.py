"""Parameters of which each process holds a part (`DTensor`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from estfx.errors import TraceError

__all__ = ["refuse_split", "split_parameters"]


def split_parameters(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those of a layer, by name."""
    tensor: Any = sys.modules.get("torch.distributed.tensor")
    if tensor is not None:  # else nothing can have been split
        yield from ((name, each) for name, each in layer.named_parameters() if isinstance(each, tensor.DTensor))


def refuse_split(layer: nn.Module) -> None:
    """Raises TraceError if a parameter is split, though FSDP2 has put its shards together: by tensor parallelism."""
    for name, parameter in split_parameters(layer):
        mesh = parameter.device_mesh
        over = f"{mesh.size()} processes" + (f" ({', '.join(mesh.mesh_dim_names)})" if mesh.mesh_dim_names else "")
        raise TraceError(
            f"`{name}` is split over {over} by tensor parallelism, which estfx does not support: a kept unit may lie "
            "on any of them. Train with FSDP2, also over a mesh of two dimensions (HSDP), or with DDP; see "
            "docs/how-to/fsdp2.md"
        )
