"""The autocast state of a device type, as plain data."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["as_in", "autocast_state", "autocasts"]


def autocasts(device_type: str) -> bool:
    """Whether autocast is on; on the meta device there is none, and to ask torch would raise an error."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def autocast_state(device_type: str) -> Hashable:
    if not autocasts(device_type):
        return "off"
    return (device_type, torch.get_autocast_dtype(device_type))


def as_in(state: Hashable) -> AbstractContextManager[Any]:
    """The autocast state that `autocast_state` gave, within a `with`."""
    if not isinstance(state, tuple):
        return nullcontext()
    device_type, dtype = state
    return torch.autocast(device_type, dtype=dtype)
