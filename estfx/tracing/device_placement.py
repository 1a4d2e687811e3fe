"""On which devices a model's parameters lie."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["placement"]

NAMED = 3  # parameters of each device that a message names


def _by_device(module: nn.Module) -> dict[torch.device, list[str]]:
    found: dict[torch.device, list[str]] = {}
    for name, parameter in module.named_parameters():
        found.setdefault(parameter.device, []).append(name)
    return found


def placement(module: nn.Module) -> str:
    """Which parameters lie where, in words; an empty string if all lie on one device."""
    by_device = _by_device(module)
    if len(by_device) < 2:
        return ""
    parts = []
    for device, names in by_device.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts.append(f"{', '.join(f'`{name}`' for name in names[:NAMED])}{more} on {device}")
    return "; ".join(parts)
