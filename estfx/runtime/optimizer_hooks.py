"""Has a model know of the steps of its optimizers, those of `torch.optim` and their kin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from estfx.tracing import ATTRIBUTE

__all__ = ["parameters_held", "watch"]

_watched: WeakSet[nn.Module] = WeakSet()
_hooks: list[Any] = []


class _Told(Protocol):
    def before_optimizer(self, model: nn.Module, optimizer: Optimizer) -> None: ...

    def after_optimizer(self, model: nn.Module, optimizer: Optimizer) -> None: ...


def watch(model: nn.Module) -> None:
    """Has what the model holds under `ATTRIBUTE` be told of every step of an optimizer, from now on."""
    if not _hooks:
        _hooks.extend((register_optimizer_step_pre_hook(_before), register_optimizer_step_post_hook(_after)))
    _watched.add(model)


def parameters_held(optimizer: Optimizer) -> set[int]:
    """The identities of the parameters that an optimizer steps."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _before(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Tells of the step. Where a closure makes the gradients, as with Lightning, that is after its first call."""
    positional = len(args) > 1  # args[0] is the optimizer
    closure = args[1] if positional else kwargs.get("closure")
    if not callable(closure):
        _tell(optimizer)
        return None
    telling = _telling(closure, optimizer)
    return ((args[0], telling, *args[2:]), kwargs) if positional else (args, {**kwargs, "closure": telling})


def _telling(closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
    told = False

    @functools.wraps(closure)
    def with_gradients() -> Any:
        nonlocal told
        result = closure()
        if not told:  # LBFGS calls it again, with other weights
            told = True
            _tell(optimizer)
        return result

    return with_gradients


def _tell(optimizer: Optimizer) -> None:
    for model in list(_watched):
        told: _Told | None = vars(model).get(ATTRIBUTE)
        if told is not None:  # else it was restored
            told.before_optimizer(model, optimizer)


def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for model in list(_watched):
        told: _Told | None = vars(model).get(ATTRIBUTE)
        if told is not None:
            told.after_optimizer(model, optimizer)
