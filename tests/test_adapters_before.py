"""Adapters that were put beside a projection before the model was transformed."""

from __future__ import annotations

import torch
from architectures import build
from torch import nn

import estfx
from estfx.schedule import Schedule, Stage


class Beside(nn.Module):
    """`base(x) + 2 · up(down(x))`, with a rank of 4."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(x) + 2.0 * self.up(self.down(x))
        return result


def test_heads_and_neurons_narrow_through_adapters_whose_rank_stays_whole() -> None:
    model = build("llama_grouped")
    plain = {axis.role: axis.size for axis in estfx.inspect(model).layers[0].axes}
    for layer in model.model.layers:
        layer.self_attn.o_proj = Beside(layer.self_attn.o_proj)
        layer.mlp.down_proj = Beside(layer.mlp.down_proj)
    estfx.transform(model, Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5)]), compile=False)
    found = model.report.layers[0]
    assert {axis.role: axis.size for axis in found.axes} == plain
    assert "mlp.down_proj.down.weight" in next(axis.parameters for axis in found.axes if axis.role == "neurons")
    assert all("rank of two linear maps" in note for note in found.notes)
    assert len(found.notes) == 2
