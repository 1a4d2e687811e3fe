"""How much of an evolving model is at work in the step in force, in numbers for logs and displays."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Activity", "activity_of"]


@dataclass(frozen=True)
class Activity:
    """What a step trains and what there is, heads and neurons summed over all layers; skipped ones keep none."""

    stage: int  # from 1, as the paper counts
    layers: int
    num_layers: int
    heads: int  # attention heads (KV groups under grouped-query attention) and recurrent channels
    num_heads: int
    neurons: int
    num_neurons: int

    def __str__(self) -> str:
        return (
            f"stage {self.stage}  layers {self.layers}/{self.num_layers}  "
            f"heads {self.heads}/{self.num_heads}  neurons {self.neurons}/{self.num_neurons}"
        )


def activity_of(model: nn.Module) -> Activity:
    """Reads the activity off a transformed model on which `set_step` was called."""
    evolving: Any = model
    subnetwork = evolving.subnetwork
    kept: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for layer in evolving.report.layers:
        indices = subnetwork.units.get(layer.name, {})
        for axis in layer.axes:
            kind = axis.role.split("_")[0]  # a second axis of a kind in one layer is called neurons_2
            total[kind] += axis.size
            if subnetwork.layers[layer.name]:
                kept[kind] += len(indices[axis.role]) if axis.role in indices else axis.size
    return Activity(
        stage=evolving.stage_index + 1,
        layers=sum(subnetwork.layers.values()),
        num_layers=len(subnetwork.layers),
        heads=kept["heads"] + kept["channels"],
        num_heads=total["heads"] + total["channels"],
        neurons=kept["neurons"],
        num_neurons=total["neurons"],
    )
