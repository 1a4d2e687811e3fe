"""A part that grows from what it is: what joins it later adds nothing at first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from estfx.copied_layers import source_of
from estfx.draws import SCORES
from estfx.errors import EstfxError
from estfx.programs import resolve
from estfx.step_draw import draw_step
from estfx.trace import ATTRIBUTE
from estfx.unit_weights import unit_weights

if TYPE_CHECKING:
    from estfx.runtime import Runtime

__all__ = ["zero_joining"]


def zero_joining(runtime: Runtime, model: nn.Module) -> int:
    """See `EvolvingModel.zero_joining`."""
    schedule = runtime.schedule
    if schedule.resample_every != "never" or schedule.policy in SCORES:
        raise EstfxError(
            "zero_joining is for a part that is drawn once and grows: resample_every='never' and a policy that ranks "
            f"nothing; the schedule has resample_every={schedule.resample_every!r} and policy={schedule.policy!r}, so "
            "that what joins it is not known beforehand."
        )
    first = draw_step(schedule, runtime.seed, runtime.drawn_layers, 0)
    at_work = {path for name, path in runtime.paths.items() if first.running[name]}
    modules = {path: model.get_submodule(path) for path in runtime.paths.values()}
    left_out: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # weight and dimension → it, and where
    for path, module in modules.items():
        name = next(n for n, own in runtime.paths.items() if own == path)
        variant = runtime.layers[name].of_structure(vars(module)[ATTRIBUTE].changed) or runtime.layers[name].first
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
