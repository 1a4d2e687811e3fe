"""Has optimizers leave alone what took no part in a step: neither weight decay nor old momentum changes it.

A unit that is not at work has a gradient of zeros, for which most optimizers do something all the same. Where units
stay out for long, as in a part that is drawn once, weight decay would wear away what they were initialised with, and
they could hardly learn when they join.
"""

from __future__ import annotations

from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from estfx.runtime.follower import Follower, StepState
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.narrowed_parameters import PartAtWork
from estfx.runtime.optimizer_hooks import parameters_held
from estfx.runtime.sharded_tensors import local_indices, local_part
from estfx.schedules import Schedule

__all__ = ["IdleUnits"]

Slices = list[tuple[nn.Parameter, int, torch.Tensor]]  # a parameter, one of its dimensions, the idle indices along it
Kept = list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]  # a tensor, a dimension, indices, their values


class IdleUnits(Follower):
    """What a model's optimizers must not change in the step in force."""

    def __init__(self, schedule: Schedule, layers: MountedLayers) -> None:
        super().__init__()
        self.watches_optimizers = schedule.leaves_idle_alone
        self.part = PartAtWork(layers)
        self._known: tuple[object, Slices] | None = None  # of a draw, which may serve many steps
        self._kept: WeakKeyDictionary[Optimizer, Kept] = WeakKeyDictionary()  # weak, for a step may fail: out of memory

    def twin(self) -> Self:
        """One for a copy of the model, whose parameters are others."""
        made = super().twin()
        made.part, made._known, made._kept = self.part.twin(), None, WeakKeyDictionary()
        return made

    def before_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """Keeps the values that the optimizer must not change."""
        if not self.watches_optimizers or state.stage.whole:
            return
        own = parameters_held(optimizer)
        moves_all = isinstance(optimizer, LBFGS)  # also what has no gradient
        kept = []
        with torch.no_grad():
            for parameter, dim, idle in self._slices(state, model):
                if id(parameter) in own and (moves_all or parameter.grad is not None):
                    here = local_part(parameter)
                    index = idle.to(here.device)
                    kept.append((here, dim, index, here.index_select(dim, index)))
        self._kept[optimizer] = kept

    def after_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """Puts them back."""
        with torch.no_grad():
            for here, dim, index, values in self._kept.pop(optimizer, ()):
                here.index_copy_(dim, index, values)

    def _slices(self, state: StepState, model: nn.Module) -> Slices:
        at_work = self.part.of(state, model)
        if self._known is None or self._known[0] is not at_work:
            by_name = dict(model.named_parameters())
            self._known = (
                at_work,
                [_slice(by_name[name], dim, own) for name, dims in at_work.items() for dim, own in dims.items()],
            )
        return self._known[1]


def _slice(parameter: nn.Parameter, dim: int, at_work: torch.Tensor) -> tuple[nn.Parameter, int, torch.Tensor]:
    """All along `dim` but what is at work; of shards the part on this rank."""
    idle = torch.ones(parameter.shape[dim] if parameter.dim() else 1, dtype=torch.bool)
    idle[at_work] = False
    index = local_indices(parameter, dim, idle.nonzero().flatten())
    return parameter, dim, index.to(local_part(parameter).device)
