"""A part that grows from what it is: what joins it later adds nothing at first."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from estfx.errors import EstfxError
from estfx.programs import resolve
from estfx.runtime.copied_layers import source_of
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.unit_weights import unit_weights
from estfx.schedules import SCORES, Schedule, draw_step

__all__ = ["zero_joining"]


def zero_joining(schedule: Schedule, seed: int, layers: MountedLayers, model: nn.Module) -> int:
    """See `EvolvingModel.zero_joining`."""
    if schedule.resample_every != "never" or schedule.policy in SCORES:
        raise EstfxError(
            "zero_joining is for a part that is drawn once and grows: resample_every='never' and a policy that ranks "
            f"nothing; the schedule has resample_every={schedule.resample_every!r} and policy={schedule.policy!r}, so "
            "that what joins it is not known beforehand."
        )
    first = draw_step(schedule, seed, layers.drawn, 0)
    at_work = {path for name, path in layers.paths.items() if first.running[name]}
    modules = {path: model.get_submodule(path) for path in layers.paths.values()}
    left_out: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # weight and dimension → it, and where
    for path, module in modules.items():
        name = next(n for n, own in layers.paths.items() if own == path)
        variant = layers.variant(name, module) or layers.kinds[name].first
        if path not in at_work and schedule.copies_layers and source_of(path, modules, at_work) is not None:
            continue  # it joins as a copy of a trained layer
        for weight in unit_weights(variant):
            if not weight.closes:
                continue
            tensor = resolve(module, weight.path)
            if isinstance(tensor, DTensor):
                raise EstfxError(f"`{path}.{weight.path}` is in shards; call zero_joining before fully_shard.")
            units = torch.ones(len(weight.positions_UP), dtype=torch.bool)
            if path in at_work:
                units[torch.from_numpy(first.units[name][weight.role])] = False
            here = torch.zeros(tensor.shape[weight.dim], dtype=torch.bool)
            here[weight.positions_UP[units].flatten()] = True
            key = (id(tensor), weight.dim)
            where = here & left_out[key][1] if key in left_out else here  # a weight that layers share is left to them
            left_out[key] = (tensor, where)
    with torch.no_grad():
        for (_, dim), (tensor, where) in left_out.items():
            tensor.index_fill_(dim, where.nonzero().flatten().to(tensor.device), 0)
    return sum(int(where.sum()) for _, where in left_out.values())
