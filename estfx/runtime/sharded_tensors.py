"""Where a rank's part of a tensor lies, if a tensor is in shards (`DTensor`)."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from estfx.errors import EstfxError

__all__ = ["has_local_part", "local_indices", "local_part", "placed"]


def placed(tensor: torch.Tensor, dim: int) -> tuple[Any, int | None, int]:
    """Over which ranks the sums of a tensor's shards must be taken, where this rank's shard of `dim` is, its length.

    No group for a tensor that is whole on every rank, or in shards of another kind than along one dimension.
    """
    if not isinstance(tensor, DTensor):
        return None, None, 0
    sharded = [place for place, placement in enumerate(tensor.placements) if isinstance(placement, Shard)]
    if len(sharded) != 1 or any(type(p) not in (Shard, Replicate) for p in tensor.placements):
        return None, None, 0
    (place,) = sharded
    group = tensor.device_mesh.get_group(place)
    shard = tensor.placements[place]
    assert isinstance(shard, Shard)
    if shard.dim % tensor.dim() != dim:
        return group, None, 0
    ranks = tensor.device_mesh.size(place)
    each = -(-tensor.shape[dim] // ranks)  # as torch.chunk cuts
    start = min(each * tensor.device_mesh.get_local_rank(place), tensor.shape[dim])
    return group, start, tensor.shape[dim]


def has_local_part(tensor: DTensor) -> bool:
    """Whether this rank's part is all of the tensor, or a piece of it along one dimension."""
    return placed(tensor, 0)[0] is not None or all(isinstance(each, Replicate) for each in tensor.placements)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the part on this rank, which can be written to.

    Raises EstfxError for shards that are not along one dimension.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if not has_local_part(tensor):
        raise EstfxError(
            f"a parameter of shape {list(tensor.shape)} is laid out as {tensor.placements}; estfx knows whole tensors "
            "and those in shards along one dimension. Use a schedule with idle_units='updated'."
        )
    return tensor.to_local()


def local_indices(tensor: torch.Tensor, dim: int, indices: torch.Tensor) -> torch.Tensor:
    """Those of the indices along `dim` that lie in this rank's part, as the part counts them."""
    start = placed(tensor, dim)[1]
    if start is None:
        return indices
    length = local_part(tensor).shape[dim]
    return indices[(indices >= start) & (indices < start + length)] - start
