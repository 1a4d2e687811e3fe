"""Has optimizers leave alone what took no part in a step: neither weight decay nor old momentum changes it.

A unit that is not at work has a gradient of zeros, for which most optimizers do something all the same. Where units
stay out for long, as in a part that is drawn once, weight decay would wear away what they were initialised with, and
they could hardly learn when they join.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from estfx.narrowed_parameters import owned_by
from estfx.optimizer_steps import parameters_held
from estfx.shards import local_indices, local_part

if TYPE_CHECKING:
    from estfx.runtime import Runtime

__all__ = ["IdleUnits"]

Slices = list[tuple[nn.Parameter, int, torch.Tensor]]  # a parameter, one of its dimensions, the idle indices along it


class IdleUnits:
    """What a model's optimizers must not change in the step in force."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: tuple[object, Slices] | None = None  # of a draw, which may serve many steps
        self._kept: dict[Optimizer, list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]] = {}

    @property
    def protected(self) -> bool:
        """Whether the schedule wants them left alone."""
        return self._runtime.schedule.leaves_idle_alone

    def keep(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before a step of the optimizer: keeps the values that it must not change."""
        if not self.protected or self._runtime.step is None or self._runtime.stage.whole:
            return
        own = parameters_held(optimizer)
        kept = []
        with torch.no_grad():
            for parameter, dim, idle in self._slices(model):
                if id(parameter) in own and parameter.grad is not None:
                    here = local_part(parameter)
                    index = idle.to(here.device)
                    kept.append((here, dim, index, here.index_select(dim, index)))
        self._kept[optimizer] = kept

    def put_back(self, optimizer: Optimizer) -> None:
        """After the step."""
        with torch.no_grad():
            for here, dim, index, values in self._kept.pop(optimizer, ()):
                here.index_copy_(dim, index, values)

    def _slices(self, model: nn.Module) -> Slices:
        runtime = self._runtime
        at_work = {name: units for name, units in runtime.drawn.items() if runtime.running[name]}
        drawn = ((name, role, own.tobytes()) for name, roles in at_work.items() for role, own in roles.items())
        key = (*at_work, *drawn, *map(id, model.parameters()))  # the layers that run, the units of each, and of what
        if self._known is None or self._known[0] != key:
            by_name = dict(model.named_parameters())
            slices = [
                _slice(by_name[name], dim, own)
                for name, dims in runtime.subnetwork(model).parameters().items()
                for dim, own in dims.items()
            ]
            skipped = [model.get_submodule(path) for path in set(runtime.paths.values()) - self._running()]
            for name in owned_by(model, skipped).values():  # which have gradients of zeros with set_to_none=False
                slices.append(_slice(by_name[name], 0, torch.zeros(0, dtype=torch.int64)))
            self._known = key, slices
        return self._known[1]

    def _running(self) -> set[str]:
        return {path for name, path in self._runtime.paths.items() if self._runtime.running[name]}


def _slice(parameter: nn.Parameter, dim: int, at_work: torch.Tensor) -> tuple[nn.Parameter, int, torch.Tensor]:
    """All along `dim` but what is at work; of shards the part on this rank."""
    idle = torch.ones(parameter.shape[dim] if parameter.dim() else 1, dtype=torch.bool)
    idle[at_work] = False
    index = local_indices(parameter, dim, idle.nonzero().flatten())
    return parameter, dim, index.to(local_part(parameter).device)
