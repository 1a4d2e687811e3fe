from types import SimpleNamespace

import torch
from torch import nn

from estfx.costs.active_counts import activity_of


def axis(role, size):
    return SimpleNamespace(role=role, size=size)


def layer(name, *axes):
    return SimpleNamespace(name=name, axes=axes)


def test_what_is_kept_is_summed_over_running_layers():
    model = nn.Module()
    model.stage_index = 1
    model.report = SimpleNamespace(
        layers=[
            layer("h.0", axis("heads", 4), axis("neurons", 16)),
            layer("h.1", axis("heads", 4), axis("neurons", 16)),
            layer("h.2", axis("channels", 8)),
        ]
    )
    model.subnetwork = SimpleNamespace(
        layers={"h.0": True, "h.1": False, "h.2": True},
        units={"h.0": {"heads": torch.tensor([0, 2])}, "h.2": {"channels": torch.tensor([1, 2, 3])}},
    )
    activity = activity_of(model)
    assert (activity.stage, activity.layers, activity.num_layers) == (2, 2, 3)
    assert (activity.heads, activity.num_heads) == (2 + 3, 4 + 4 + 8)
    assert (activity.neurons, activity.num_neurons) == (16, 32)  # no indices: all of them
    assert str(activity) == "stage 2  layers 2/3  heads 5/16  neurons 16/32"
