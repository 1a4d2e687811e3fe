"""Cuts of decoders of random form are the masked original, or are refused with a reason."""

from __future__ import annotations

import os

import hypothesis
import torch._dynamo
from drawn_decoders.cuts import examine_cut
from drawn_decoders.form import json_of_form
from drawn_decoders.trials import form_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@hypothesis.seed(int(os.environ["ESTFX_TESTS_DAY"]))
@settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[hypothesis.Phase.generate],
)
@given(number=st.integers(0, 10**6))
def test_a_cut_is_the_masked_original(number: int) -> None:
    form = form_of(number)
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):  # which costs more than it saves
        verdict = examine_cut(form, number)
    assert verdict.error == 0.0, (number, json_of_form(form), verdict)
    assert verdict.parts == "heads and neurons" or verdict.refused, (number, json_of_form(form))
