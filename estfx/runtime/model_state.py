"""What others ask of a transformed model: what its draws depend on, and how much of it takes no part in the step."""

from __future__ import annotations

from typing import Any

from torch import nn

from estfx.runtime.narrowed_parameters import numbers_left_out as _numbers_left_out
from estfx.runtime.run_fingerprint import run_fingerprint
from estfx.runtime.runtime import Runtime
from estfx.tracing import ATTRIBUTE

__all__ = ["made_with", "numbers_left_out"]


def made_with(model: nn.Module) -> dict[str, Any]:
    """The schedule, the seed and the layers of a transformed model with the sizes of what is drawn, as plain data."""
    runtime: Runtime = vars(model)[ATTRIBUTE]
    return run_fingerprint(type(model).__name__, runtime.schedule, runtime.seed, runtime.layers.kinds)


def numbers_left_out(model: nn.Module) -> int:
    """How many numbers of a transformed model's parameters take no part in the step in force.

    Of a parameter that several layers share, those that none of them reads.
    """
    runtime: Runtime = vars(model)[ATTRIBUTE]
    return _numbers_left_out(runtime.layers, runtime.require_step(), model)
