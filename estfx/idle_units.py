"""Has optimizers leave alone what took no part in a step: neither weight decay nor old momentum changes it.

A unit that is not at work has a gradient of zeros, for which most optimizers do something all the same. Where units
stay out for long, as in a part that is drawn once, weight decay would wear away what they were initialised with, and
they could hardly learn when they join.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from estfx.narrowed_parameters import narrowed_parameters
from estfx.shards import local_indices, local_part

if TYPE_CHECKING:
    from estfx.runtime import Runtime

__all__ = ["IdleUnits"]


@dataclass(frozen=True)
class _Idle:
    """What takes no part in a step."""

    slices: list[tuple[nn.Parameter, int, torch.Tensor]]  # a parameter, one of its dimensions, the idle indices on it
    skipped: list[nn.Parameter]  # those that belong to skipped layers alone


class IdleUnits:
    """What a model's optimizers must not change in the step in force."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: tuple[object, _Idle] | None = None  # of a draw, which may serve many steps
        self._kept: dict[Optimizer, list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]] = {}

    @property
    def protected(self) -> bool:
        """Whether the schedule wants them left alone."""
        return self._runtime.schedule.leaves_idle_alone

    def keep(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before a step of the optimizer: keeps the values that it must not change."""
        if not self.protected or self._runtime.step is None:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        idle = self._idle(model)
        kept = []
        with torch.no_grad():
            for parameter, dim, indices in idle.slices:
                if id(parameter) in own and parameter.grad is not None:
                    here = local_part(parameter)
                    index = local_indices(parameter, dim, indices).to(here.device)
                    kept.append((here, dim, index, here.index_select(dim, index)))
            for parameter in idle.skipped:
                if id(parameter) in own and parameter.grad is not None:  # zeros: set_to_none=False
                    here = local_part(parameter)
                    index = torch.arange(here.shape[0] if here.dim() else 1, device=here.device)
                    kept.append((here, 0, index, here.clone()))
        self._kept[optimizer] = kept

    def put_back(self, optimizer: Optimizer) -> None:
        """After the step."""
        with torch.no_grad():
            for here, dim, index, values in self._kept.pop(optimizer, ()):
                here.index_copy_(dim, index, values)

    def _idle(self, model: nn.Module) -> _Idle:
        units = self._runtime.subnetwork(model).units
        drawn = ((name, role, own.numpy().tobytes()) for name, roles in units.items() for role, own in roles.items())
        key = (*units, *drawn, *map(id, model.parameters()))  # the layers that run, the units of each, and of what
        if self._known is None or self._known[0] != key:
            by_name = dict(model.named_parameters())
            slices = []
            for name, dims in narrowed_parameters(self._runtime, model, units).items():
                for dim, at_work in dims.items():
                    idle = torch.ones(by_name[name].shape[dim], dtype=torch.bool)
                    idle[at_work] = False
                    slices.append((by_name[name], dim, idle.nonzero().flatten()))
            self._known = key, _Idle(slices, list(self._skipped(model)))
        return self._known[1]

    def _skipped(self, model: nn.Module) -> Iterator[nn.Parameter]:
        if all(self._runtime.running.values()):
            return
        running = {path for name, path in self._runtime.paths.items() if self._runtime.running[name]}
        skipped = set(self._runtime.paths.values()) - running
        theirs = {id(p): p for path in skipped for p in model.get_submodule(path).parameters()}
        outside = [model, *(model.get_submodule(path) for path in running)]
        inner = {id(module) for path in skipped for module in model.get_submodule(path).modules()}
        for module in {id(m): m for each in outside for m in each.modules()}.values():
            if id(module) not in inner:
                for parameter in module.parameters(recurse=False):
                    theirs.pop(id(parameter), None)
        yield from theirs.values()
