"""What others ask of a transformed model: what its draws depend on, and how much of it takes no part in the step."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from estfx.runtime.idle_units import IdleUnits
from estfx.runtime.run_fingerprint import run_fingerprint
from estfx.runtime.runtime import Runtime
from estfx.tracing import ATTRIBUTE

__all__ = ["made_with", "numbers_left_out", "part_at_work"]


def made_with(model: nn.Module) -> dict[str, Any]:
    """The schedule, the seed and the layers of a transformed model with the sizes of what is drawn, as plain data."""
    runtime: Runtime = vars(model)[ATTRIBUTE]
    return run_fingerprint(type(model).__name__, runtime.schedule, runtime.seed, runtime.layers.kinds)


def numbers_left_out(model: nn.Module) -> int:
    """How many numbers of a transformed model's parameters take no part in the step in force.

    Of a parameter that several layers share, those that none of them reads.
    """
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    left = 0
    for name, dims in part_at_work(model).items():
        kept = [len(dims[dim]) if dim in dims else size for dim, size in enumerate(sizes[name] or (1,))]
        left += prod(sizes[name]) - prod(kept)
    return left


def part_at_work(model: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
    """The kept indices by name and dimension of all parameters that are not whole in the step in force.

    Those of skipped layers keep none. The same object, as long as the same is at work.
    """
    runtime: Runtime = vars(model)[ATTRIBUTE]
    return runtime.follower(IdleUnits).part.of(runtime.require_step(), model)
