"""Decoders by number: what is drawn for each, without hypothesis, and how it is looked at."""

from __future__ import annotations

import random

from drawn_decoders.form import Form, draw_form
from drawn_decoders.oracles import Verdict, examine

__all__ = ["examined", "form_of"]


def form_of(number: int, seed: int = 0) -> Form:
    return draw_form(random.Random(seed * 1_000_003 + number).choice)


def examined(form: Form, number: int) -> Verdict:
    """One in six has sizes left open, which takes longer; one in eight is verified by `transform` first."""
    return examine(form, number, verify=number % 8 == 5, open_sizes=number % 6 == 0)
