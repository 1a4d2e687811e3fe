"""What is kept at one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from estfx.showing import Block, Cells, Shown, compact

__all__ = ["Subnetwork"]


@dataclass(frozen=True)
class Subnetwork(Shown):
    """The part of the model that one optimizer step trains.

    `layers` says by layer name whether it runs; `units` gives, for each layer that runs, the kept indices by role
    (int64, ascending): "heads" are KV heads where queries share them. A role that is whole lists all of its units.
    """

    step: int
    layers: dict[str, bool]
    units: dict[str, dict[str, torch.Tensor]]
    _parameters: Callable[[], dict[str, dict[int, torch.Tensor]]] = field(repr=False, compare=False)
    scales: bool = True  # sums over kept units, by total / kept

    def parameters(self) -> dict[str, dict[int, torch.Tensor]]:
        """For every parameter that this step narrows, its name in `model.named_parameters(remove_duplicate=False)`, the
        kept indices by dimension. Skipped layers' parameters are not listed. A parameter that several layers share is
        listed under its name in each of them, with the layer's own draw.
        """
        return self._parameters()

    _repr_pretty_ = Shown._repr_pretty_  # a dataclass's own repr would come first

    def _blocks(self) -> Iterator[Block]:
        """A row for each layer: which of its units are kept."""
        yield f"step {self.step}: {sum(self.layers.values())} of {len(self.layers)} layers run"
        roles = list(dict.fromkeys(role for kept in self.units.values() for role in kept))
        rows = []
        for name, runs in self.layers.items():
            kept = {role: compact(units.tolist()) for role, units in self.units.get(name, {}).items()}
            rows.append((name, *(kept.get(role, "") if runs else "skipped" for role in roles)))
        yield Cells(("layer", *roles), rows, words=frozenset(range(len(roles) + 1)))
