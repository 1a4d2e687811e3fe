"""What an evolving model does before and after the steps of its optimizers, those of `torch.optim` and their kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from estfx.trace import ATTRIBUTE

if TYPE_CHECKING:
    from estfx.runtime import Runtime

__all__ = ["parameters_held", "watch"]

_watched: WeakSet[nn.Module] = WeakSet()
_hooks: list[Any] = []


def watch(model: nn.Module) -> None:
    """Has the model know of its optimizers' steps, from now on, if it does anything before or after them."""
    runtime: Runtime = vars(model)[ATTRIBUTE]
    if not (runtime.selection.observes or runtime.idle_units.protected or runtime.copied_layers.wanted):
        return
    if not _hooks:
        _hooks.extend((register_optimizer_step_pre_hook(_before), register_optimizer_step_post_hook(_after)))
    _watched.add(model)


def parameters_held(optimizer: Optimizer) -> set[int]:
    """The identities of the parameters that an optimizer steps."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for model in list(_watched):
        runtime: Runtime | None = vars(model).get(ATTRIBUTE)
        if runtime is not None:  # else it was restored
            runtime.selection.observe(model, optimizer)
            runtime.idle_units.keep(model, optimizer)


def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for model in list(_watched):
        runtime: Runtime | None = vars(model).get(ATTRIBUTE)
        if runtime is not None:
            runtime.idle_units.put_back(optimizer)
            runtime.copied_layers.follow(model, optimizer)
