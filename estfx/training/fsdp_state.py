"""A model in the shards of FSDP2, whose weights and optimizer states are read and written whole.

So a checkpoint is the same one whichever way and by however many processes a model is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

__all__ = ["load_optimizer_state", "load_weights", "optimizer_state", "shard", "weights"]


def shard(model: nn.Module, layers: Iterable[str], device: torch.device) -> None:
    """Puts the model into shards over all ranks, in place: each of the named layers by itself, then the rest."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in dict.fromkeys(model.get_submodule(name) for name in layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def weights(model: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors on the CPU; on all ranks but the first it is empty. Every rank must call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state:  # tied weights stay one tensor
            state[name] = state[first.setdefault(id(parameter), name)]
    return state


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads whole tensors, of which every rank has all. Raises RuntimeError for a name that is missing or unknown.

    Of weights that are tied, one name is enough.
    """
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    unknown = sorted(state.keys() - held.keys())
    loaded = {id(held[name]) for name in state.keys() & held.keys()}
    missing = sorted(name for name in model.state_dict() if id(held[name]) not in loaded)
    if unknown or missing:
        raise RuntimeError(f"the weights do not fit: missing {missing}, unknown {unknown}")
    with torch.no_grad():
        for name, tensor in state.items():
            held[name].copy_(_like(held[name], tensor))


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors. Every rank must call it."""
    state = optimizer.state_dict()
    whole = {
        index: {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in each.items()}
        for index, each in state["state"].items()
    }
    return {**state, "state": whole}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads a state dict with whole tensors, of which every rank has all."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = {
        index: {
            name: _like(parameters[index], value)
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in each.items()
        }
        for index, each in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shards})


def _like(held: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor in the shards of another; nothing is sent."""
    if not isinstance(held, DTensor):
        return whole
    mesh = held.device_mesh
    return distribute_tensor(whole.to(held.device), mesh, held.placements, src_data_rank=None)
