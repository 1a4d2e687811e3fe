"""Weights and buffers of a cut: each its own, those that are shared once, and none that something else needs."""

from __future__ import annotations

import pytest
import torch
from foreign_decoders import InList
from hand_written import HIDDEN, NEURONS, VOCABULARY, Decoder, Mlp, PreNorm
from torch import nn
from torch.nn import functional as F

import estfx

IDS = torch.arange(34).reshape(2, 17)


class Scaled(Mlp):
    """A factor for each neuron, in a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", 1.0 + torch.arange(NEURONS) / NEURONS, persistent=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x_BTD)) * self.factor)


def test_a_buffer_that_is_not_saved_is_saved_once_it_is_cut(tmp_path: object) -> None:
    def whole() -> nn.Module:
        torch.manual_seed(0)
        return Decoder(*(PreNorm(mlp=Scaled()) for _ in range(2))).eval()

    made = estfx.cut(whole(), {f"layers.{i}": {"neurons": [3, 5, 40]} for i in range(2)}, example_inputs=(IDS,))
    assert made.layers[0].mlp.factor.tolist() == pytest.approx([1 + n / NEURONS for n in (3, 5, 40)])
    estfx.save(made, str(tmp_path))
    again = estfx.load(str(tmp_path), model=whole).eval()
    assert torch.equal(again(IDS), made(IDS))


def test_layers_that_share_a_weight_keep_the_same_of_it() -> None:
    two = InList(PreNorm(), PreNorm()).eval()
    two.layers[1].mlp.down.weight = two.layers[0].mlp.down.weight
    same = estfx.cut(two, {f"layers.{i}": {"neurons": [1, 2]} for i in range(2)}, example_inputs=(IDS,))
    assert same.layers[1].mlp.down.weight is same.layers[0].mlp.down.weight
    with pytest.raises(
        estfx.UnsupportedModelError, match="share a weight, and of it one keeps what the other does not"
    ):
        estfx.cut(two, {"layers.0": {"neurons": [1]}, "layers.1": {"neurons": [2]}}, example_inputs=(IDS,))


def test_a_weight_that_is_used_outside_of_the_layers_is_refused() -> None:
    class Tied(Decoder):
        def __init__(self) -> None:
            super().__init__(PreNorm(), PreNorm())
            self.outer = nn.Linear(HIDDEN, NEURONS, bias=False)
            self.outer.weight = self.layers[0].mlp.up.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + self.outer(self.embed(ids)).sum() / VOCABULARY

    with pytest.raises(estfx.UnsupportedModelError, match=r"is used outside of the layers too, as `outer\.weight`"):
        estfx.cut(Tied().eval(), {"layers.0": {"neurons": [1, 2]}}, example_inputs=(IDS,))
