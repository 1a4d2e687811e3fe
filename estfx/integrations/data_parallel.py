"""DistributedDataParallel sends of the gradients only what was trained."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket  # which DDP compares with the annotation below

from estfx.evolving import evolving_within
from estfx.runtime import part_at_work

__all__ = ["ddp_hook"]


def ddp_hook(state: nn.Module, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A communication hook of DDP that averages the gradients of what a step trains, and sends nothing else.

        ddp = DistributedDataParallel(model, find_unused_parameters=True)
        ddp.register_comm_hook(model, estfx.ddp_hook)

    `state` is the evolving model, or what holds it; of a DDP module its process group is used, else the default one.
    Gradients of units that are not drawn and of skipped layers are zeros on all ranks: they stay so, and are not sent.
    The averages are those of DDP without a hook. With two processes they are so to the bit; with more, the order of a
    sum may depend on where a number stands in what is sent.

    It can be wrapped by those of torch that cast, such as `bf16_compress_wrapper`. Micro-batches that are added up
    under `no_sync` must be of one `set_step`, as anywhere. Raises EstfxError in the backward pass if `state` holds no
    evolving model, or no step was set.
    """
    group: Any = getattr(state, "process_group", None) or dist.group.WORLD
    model = evolving_within(state)
    buffer = bucket.buffer()
    kept = part_at_work(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()} if kept else {}
    at_work = [kept.get(names.get(id(parameter), ""), {}) for parameter in bucket.parameters()]
    parts = [_Part(gradient, dims) for gradient, dims in zip(_gradients(bucket, buffer), at_work, strict=True)]
    whole = not any(at_work)
    sent = buffer if whole or not parts else torch.cat([part.taken().reshape(-1) for part in parts])
    if not sent.numel():
        nothing: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        nothing.set_result(buffer)
        return nothing
    sent.div_(dist.get_world_size(group))

    def put_back(future: torch.futures.Future[Any]) -> torch.Tensor:
        values: torch.Tensor = future.value()[0]
        if whole:
            return values
        at = 0
        for part in parts:
            at += part.put(values[at:])
        return buffer

    work: Any = dist.all_reduce(sent, group=group, async_op=True)
    averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(put_back)
    return averaged


class _Part:
    """What is sent of a gradient: the kept indices of some of its dimensions, and all of the others."""

    def __init__(self, gradient: torch.Tensor, dims: dict[int, torch.Tensor]) -> None:
        self.gradient = gradient if gradient.dim() else gradient.view(1)  # a number has its one dimension, too
        self.dims = {dim: index.to(gradient.device) for dim, index in dims.items()}

    def taken(self) -> torch.Tensor:
        part = self.gradient
        for dim, index in self.dims.items():
            part = part.index_select(dim, index)
        return part

    def put(self, values: torch.Tensor) -> int:
        """Writes what was taken back, from the beginning of `values`. Returns how many numbers that are."""
        shape = [len(self.dims[dim]) if dim in self.dims else size for dim, size in enumerate(self.gradient.shape)]
        number = math.prod(shape)
        own = values[:number].view(shape)
        if not self.dims:
            self.gradient.copy_(own)
        elif len(self.dims) == 1:
            ((dim, index),) = self.dims.items()
            self.gradient.index_copy_(dim, index, own)
        else:
            last = max(self.dims)
            ranges = (torch.arange(size, device=own.device) for size in self.gradient.shape[: last + 1])
            each = (self.dims.get(dim, whole) for dim, whole in enumerate(ranges))
            self.gradient[tuple(index.view(-1, *[1] * (last - dim)) for dim, index in enumerate(each))] = own
        return number


def _gradients(bucket: GradBucket, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each gradient as a view of the buffer, which may have been cast: a wrapper gives another one than DDP's own."""
    at = 0
    for gradient in bucket.gradients():
        yield buffer.as_strided(gradient.shape, gradient.stride(), buffer.storage_offset() + at)
        at += gradient.numel()
