"""Compiling ahead what the stages of a schedule run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError
from estfx.runtime.mounted_layers import Drawn
from estfx.runtime.runtime import Runtime
from estfx.schedules import widths_of_layers

__all__ = ["warm_up"]


def warm_up(model: nn.Module, runtime: Runtime, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward and a backward pass of all layers in each stage, of which nothing stays but what was compiled."""
    if not model.training:
        raise EstfxError("warmup compiles what training runs, but the model is in eval mode. Call model.train().")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = dict.fromkeys(parameter.device for parameter in model.parameters()) or {torch.device("cpu"): None}
    cuda = sorted(device.index or 0 for device in devices if device.type == "cuda")
    with torch.random.fork_rng(devices=cuda), torch.enable_grad(), _quietly(runtime), _put_back(runtime):
        for stage in runtime.schedule.stages:
            runtime.take_step(stage.start, next(iter(devices)))
            for drawn in _widths_of_stage(runtime):
                runtime.run_all(drawn)
                result = model(*args, **kwargs)
                loss = getattr(result, "loss", None)
                values = [loss] if loss is not None else pytree.tree_leaves(result)
                values = [x for x in values if isinstance(x, torch.Tensor) and x.requires_grad]
                torch.autograd.grad([x.sum() for x in values], learning, allow_unused=True)


def _widths_of_stage(runtime: Runtime) -> Iterator[Drawn]:
    """Units for all layers, once in each of the widths that they may have in the stage in force."""
    if runtime.schedule.ranking != "global":
        yield runtime.require_step().drawn
        return
    layers = runtime.layers.drawn
    roles = {(role, size) for layer in layers.values() for role, size in layer.sizes.items()}
    choices = {
        (role, size): widths_of_layers(runtime.schedule, runtime.stage, role, size) for role, size in sorted(roles)
    }
    for each in product(*choices.values()):
        widths = dict(zip(choices, each, strict=True))
        yield {
            name: {role: np.arange(widths[role, size]) for role, size in layer.sizes.items()}
            for name, layer in layers.items()
        }


@contextmanager
def _put_back(runtime: Runtime) -> Iterator[None]:
    """Afterwards the step in force is the one from before."""
    before = runtime.in_force()
    try:
        yield
    finally:
        runtime.put_in_force(before)


@contextmanager
def _quietly(runtime: Runtime) -> Iterator[None]:
    """Within it, nothing is said of programs that are compiled again."""
    if runtime.compiler is None:
        yield
        return
    before, runtime.compiler.quiet = runtime.compiler.quiet, True
    try:
        yield
    finally:
        runtime.compiler.quiet = before
