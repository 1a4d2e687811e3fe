"""A layer is cut only if it gives what its narrowed graph gives, to nearly the last bit of float64."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import build

from estfx.cutting.kept_parts import kept_parts
from estfx.cutting.layer_parts import layer_parts
from estfx.cutting.layer_trial import LayerTrial
from estfx.programs import analysed
from estfx.tracing import trace


@pytest.mark.parametrize(("error", "fits"), [(0.0, True), (1e-13, True), (1e-6, False), (float("nan"), False)])
def test_what_a_layer_adds_must_be_what_the_graph_adds(error: float, fits: bool) -> None:
    model = build("gpt2").eval()
    decoder = trace(model)
    variants = {program: analysed(traced, scales=False) for program, traced in decoder.traced.items()}
    parts = layer_parts(decoder, variants, kept_parts(decoder, variants, {}, None))
    trial = LayerTrial(model, parts["transformer.h.0"])
    got = [value * (1 + error) if isinstance(value, torch.Tensor) else value for value in trial._want]
    assert trial.fits(got) == fits
    assert not trial.fits(got[:-1])
