"""Numbers that code reads are found by running it, and a layer that gives something else is not taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_written import HIDDEN, VOCABULARY, Attention, Decoder, PreNorm
from torch import nn
from torch.nn import functional as F

import estfx

IDS = torch.arange(34).reshape(2, 17)


class Options:
    """As some decoders keep their sizes: an object of their own, with a dictionary in it."""

    def __init__(self, heads: int) -> None:
        self.sizes = {"heads": heads, "width": [heads * 8, heads * 8, heads * 8]}


class OptionAttention(Attention):
    """Reads its sizes from an object that all layers share."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        sizes = self.options.sizes
        q, k, v = self.qkv(x_BTD).split(sizes["width"], dim=2)
        q, k, v = (y.unflatten(2, (sizes["heads"], 8)).transpose(1, 2) for y in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class FaintAttention(Attention):
    """Adds so little that a whole model's outputs do not show whether it is right."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 5

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x_BTD).chunk(3, dim=2)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return 1e-7 * self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def units(model: nn.Module, **kept: list[int]) -> dict[str, Any]:
    return {layer.name: kept for layer in estfx.inspect(model, (IDS,)).layers}


def test_numbers_in_shared_objects_are_each_layers_own() -> None:
    options = Options(5)
    model = Decoder(*(PreNorm(OptionAttention(options)) for _ in range(3))).eval()
    made = estfx.cut(model, {"layers.0": {"heads": [0, 3]}, "layers.2": {"heads": [1, 2, 4]}}, example_inputs=(IDS,))
    assert options.sizes == {"heads": 5, "width": [40, 40, 40]}
    found = [layer.attention.options.sizes for layer in made.layers]
    assert [each["heads"] for each in found] == [2, 5, 3]
    assert [each["width"] for each in found] == [[16] * 3, [40] * 3, [24] * 3]
    assert made(IDS).shape == (2, 17, VOCABULARY)


def test_a_layer_is_proved_by_what_it_adds() -> None:
    """With 5 heads of another size, the layer runs, and the model's outputs are the same within rounding."""
    model = Decoder(*(PreNorm(FaintAttention()) for _ in range(2))).eval()
    made = estfx.cut(model, units(model, heads=[0, 1, 2, 4]), example_inputs=(IDS,))
    assert [layer.attention.heads for layer in made.layers] == [4, 4]


def test_a_number_in_the_code_is_refused_with_its_line() -> None:
    model = Decoder(*(PreNorm() for _ in range(2))).eval()
    with pytest.raises(estfx.UnsupportedModelError) as caught:
        estfx.cut(model, units(model, heads=[0, 1]), example_inputs=(IDS,))
    text = str(caught.value)
    assert "the heads of layer `layers.0` cannot be cut out: of " in text
    assert "at hand_written.py:" in text
    assert "What else there is: neurons, and whole layers." in text


def test_layers_that_are_called_by_name_cannot_be_left_out() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, HIDDEN)
            self.first, self.second = PreNorm(), PreNorm()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(self.embed(ids)))

    with pytest.raises(estfx.UnsupportedModelError, match=r"it is in no nn\.ModuleList"):
        estfx.cut(Named().eval(), {}, layers=["first"], example_inputs=(IDS,))
