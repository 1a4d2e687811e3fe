"""States of optimizers for parameters that have not been trained yet, which torch's distributed checkpoints expect."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from estfx.errors import EstfxError

__all__ = ["initialise_optimizer"]


def initialise_optimizer(optimizer: Optimizer) -> int:
    """Gives each parameter without a state the one that it would have before its first step. Changes no parameter.

    An optimizer makes a state when a parameter has its first gradient, so layers that were skipped so far have none.
    `torch.distributed.checkpoint` saves what is there, but asks for all of it when it loads. Call this before the first
    step of a run, and again on the new optimizer before a checkpoint is loaded into it:

        optimizer = torch.optim.AdamW(model.parameters())
        estfx.initialise_optimizer(optimizer)

    It makes a step with gradients of zeros and a learning rate of 0, for which it needs the memory of the parameters
    once more, and sets counts of steps to 0. For the optimizers of torch that go on from zeros as from nothing: all of
    the Adam kind, SGD without dampening, Lion, Adagrad, RMSprop.

    Returns how many parameters got a state. Raises EstfxError if the optimizer cannot make a step by itself, as LBFGS.
    """
    step = inspect.unwrap(type(optimizer).step)  # without hooks: nothing is trained
    if any(p.default is p.empty for name, p in inspect.signature(step).parameters.items() if name == "closure"):
        raise EstfxError(
            f"{type(optimizer).__name__} needs a closure for a step, and has one state for all parameters: there is "
            "nothing to initialise."
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    without = [each for each in parameters if each.requires_grad and not optimizer.state.get(each)]
    gradients = [each.grad for each in parameters]
    rates = [group.get("lr") for group in optimizer.param_groups]
    values = [each.detach().clone() for each in without]
    try:
        for each in parameters:
            each.grad = None
        for each in without:
            each.grad = torch.zeros_like(each)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
        with torch.no_grad():  # which the hooks' wrapper does otherwise
            step(optimizer)
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = rate
        for each, gradient in zip(parameters, gradients, strict=True):
            each.grad = gradient
        with torch.no_grad():
            for each, value in zip(without, values, strict=True):
                each.copy_(value)
    return sum(_as_before_the_first_step(optimizer, each) for each in without)


def _as_before_the_first_step(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    state: dict[str, Any] = optimizer.state[parameter]
    count = state.get("step")
    if isinstance(count, torch.Tensor):
        count.zero_()
    elif count is not None:
        state["step"] = 0
    return bool(state)
