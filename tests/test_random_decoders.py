"""The oracles as properties: decoders of random form and size, random fractions, random draws.

`drawn_decoders/` has the forms, the decoders, and the oracles; the reference is the same code with units masked where
they are summed over. `benchmarks/random_decoders.py` looks at thousands.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch
import torch._dynamo
from drawn_decoders.form import AttentionForm, Form, MlpForm, draw_form, form_of_json, json_of_form
from drawn_decoders.oracles import examine
from drawn_decoders.trials import examined, form_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from estfx.passes.find_mlp import FindMlp
from estfx.passes.scale_contractions import ScaleContractions


@st.composite
def forms(draw: st.DrawFn) -> Form:
    return draw_form(lambda options: draw(st.sampled_from(options)))


@hypothesis.seed(int(os.environ["ESTFX_TESTS_DAY"]))
@settings(
    max_examples=6,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[hypothesis.Phase.generate],  # to shrink a decoder takes minutes, and its form says enough
)
@given(form=forms(), seed=st.integers(0, 1000), verify=st.booleans(), open_sizes=st.booleans())
def test_oracles_hold_for_any_form(form: Form, seed: int, verify: bool, open_sizes: bool) -> None:
    """What fails is printed with its form, which `benchmarks/random_decoders.py --form` looks at again."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):  # which costs more than it saves
        assert examine(form, seed, verify=verify, open_sizes=open_sizes).wrong == [], json_of_form(form)


# every value that a choice must have been drawn with
DRAWN: dict[type, dict[str, set[Any]]] = {
    Form: {
        "residual": {"pre", "post", "sandwich", "parallel", "parallel in one", "norm of the stream", "norm of the sum"},
        "norm": {"by hand", "fused", "layer norm"},
        "layer_scale": {"none", "number", "channels", "tensor", "tensors"},
        "held": {"none", "stream", "units"},
        "effect": {"none", "attribute", "argument", "object", "buffer", "weights"},
        "returns": {"stream", "tuple"},
        "sharing": {"none", "mlp", "attention", "norm", "twice"},
    },
    AttentionForm: {
        "mixer": {"heads", "latent", "gated convolution", "convolution"},
        "layout": {"separate", "in order", "keys with values", "by group", "weights", "transposed"}
        | {"three first", "three middle", "three last", "stacked weights"},
        "output": {"linear", "einsum", "transposed"},
        "core": {"fused", "by hand", "einsum", "baddbmm", "grouped"},
        "expansion": {"expand", "interleave", "tile"},
        "masking": {"causal", "built", "given"},
        "positions": {"none", "rotary", "partial", "interleaved", "complex", "slopes", "relative", "table"},
        "tables": {"computed", "buffer", "tensor", "given"},
        "query_norm": {"none", "each head", "all heads", "own"},
        "output_norm": {"none", "each head", "all heads"},
        "gate": {"none", "each channel", "each head"},
        "sinks": {"none", "column", "keys"},
        "across": {"none", "talking", "rolled", "first added", "centred", "numbered"},
        **{name: {False, True} for name in ("window", "filled", "cap", "convolved", "tied_values", "bias")},
    },
    MlpForm: {
        "kind": {"plain", "gated", "soft list", "soft", "hard", "hard loop", "hard gathered", "hard scattered"},
        "layout": {"separate", "in order", "slices", "pairs"},
        "across": {"none", "rolled", "flipped", "summed up", "centred", "weighed", "largest", "halves", "numbered"}
        | {"permuted", "shuffled", "with the stream"},
        "spelling": {"linear", "transposed", "einsum", "convolution"},
        **{name: {False, True} for name in ("norm", "convolved", "tied", "shared_expert", "normalised")},
    },
}


def test_every_form_is_drawn() -> None:
    drawn = [form_of(number) for number in range(600)]
    parts: dict[type, list[Any]] = {
        Form: drawn,
        AttentionForm: [form.attention for form in drawn],
        MlpForm: [form.mlp for form in drawn],
    }
    for kind, choices in DRAWN.items():
        for name, values in choices.items():
            assert {getattr(part, name) for part in parts[kind]} == values, name
    assert any(form.attention.value_size != form.attention.key_size for form in drawn)


def test_sizes_coincide() -> None:
    drawn = [form_of(number) for number in range(300)]
    for coincide in (
        lambda form: form.mlp.neurons == form.hidden,
        lambda form: form.mlp.neurons == form.attention.heads * form.attention.group * form.attention.value_size,
        lambda form: form.length == form.attention.heads,
        lambda form: form.attention.heads == form.attention.group > 1,
        lambda form: form.attention.value_size == form.attention.heads,
        lambda form: form.mlp.experts == form.attention.heads,
    ):
        assert sum(map(coincide, drawn)) >= 5


def test_a_form_is_written_and_read() -> None:
    form = form_of(7)
    assert form_of_json(json_of_form(form)) == form


PLAIN = dataclasses.replace(
    form_of(0),
    attention=dataclasses.replace(
        form_of(0).attention,
        **{"mixer": "heads", "heads": 2, "group": 2, "key_size": 4, "value_size": 4, "layout": "separate"},
        **{"core": "by hand", "masking": "built", "positions": "none", "query_norm": "none", "output_norm": "none"},
        **{"sinks": "none", "convolved": False, "tied_values": False, "gate": "none"},
    ),
    mlp=dataclasses.replace(form_of(0).mlp, kind="gated", spelling="linear", convolved=False, tied=False),
    residual="pre",
    effect="none",
    sharing="none",
    held="none",
)


def test_neurons_that_are_no_longer_found_are_seen() -> None:
    def nothing(self: FindMlp, gm: GraphModule) -> int:
        return 0

    with mock.patch.object(FindMlp, "run", nothing):
        assert any("neurons stay whole" in what for what in examine(PLAIN, 1, open_sizes=False).wrong)


def test_a_factor_that_is_left_out_is_seen() -> None:
    def nothing(self: ScaleContractions, gm: GraphModule) -> int:
        return 0

    assert examine(PLAIN, 1, open_sizes=False).wrong == []
    with mock.patch.object(ScaleContractions, "run", nothing):
        assert any("the stream differs" in what for what in examine(PLAIN, 1, open_sizes=False).wrong)


@pytest.mark.parametrize("number", [3796, 4704])
def test_what_nearly_cancels_out_is_no_fault(number: int) -> None:
    """Heads are centred and then normed: of two, or of equal ones, there is left what rounding left."""
    form = form_of(number)
    assert form.attention.across == "centred"
    assert form.attention.output_norm == "all heads"
    assert examined(form, number).wrong == []
