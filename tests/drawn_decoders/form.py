"""The form of a decoder: every choice that its code, its weights and its sizes come from, and how one is drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["AttentionForm", "Form", "MlpForm", "draw_form", "form_of_json", "json_of_form"]

T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]  # one of these; what is drawn oftener stands there more than once

LONGEST = 16  # positions that tables hold

MIXERS = ("heads",) * 8 + ("latent", "latent", "gated convolution", "convolution")
LAYOUTS = ("separate", "in order", "keys with values", "by group", "weights", "transposed")
LAYOUTS_OF_SINGLE_HEADS = ("three first", "three middle", "three last", "stacked weights")  # no groups, sizes alike
CORES = ("fused", "by hand", "einsum", "baddbmm", "grouped")
POSITIONS = ("none", "rotary", "partial", "interleaved", "complex", "slopes", "relative", "table")
ACROSS = ("rolled", "flipped", "summed up", "centred", "weighed", "largest", "halves", "numbered", "permuted")
EXPERTS = ("soft list", "soft", "hard", "hard loop", "hard gathered", "hard scattered")


@dataclass(frozen=True)
class AttentionForm:
    mixer: str  # "heads", "latent", "gated convolution", "convolution"
    heads: int  # for keys and values; of convolutions, the channels
    group: int  # query heads for each
    key_size: int
    value_size: int
    layout: str  # of the projections
    output: str  # "linear", "einsum", "transposed"
    core: str
    expansion: str  # of keys and values to the query heads: "expand", "interleave", "tile"
    masking: str  # "causal" (the fused operator's own), "built" in the layer, "given" by the decoder
    filled: bool  # the mask is filled in, and not added
    window: bool
    positions: str
    tables: str  # what positions are told by is "computed" in the layer, a "buffer", a plain "tensor", or "given"
    query_norm: str  # "none", "each head" and, with weights of its "own", "all heads"
    output_norm: str  # "none", "each head", "all heads"
    gate: str  # of what heads give: "none", "each channel", "each head"
    sinks: str  # "none", "column" of scores, "keys" and values
    cap: bool  # of the scores
    convolved: bool  # queries and keys
    tied_values: bool  # values are keys
    across: str  # what is done across the heads: "none", "talking", "rolled", "first added", "centred", "numbered"
    rank: int  # of latent keys and values
    query_rank: int  # 0: queries come from the stream itself
    bias: bool


@dataclass(frozen=True)
class MlpForm:
    kind: str  # "plain", "gated", or one of EXPERTS
    neurons: int
    layout: str  # of a gate: "separate", "in order", "slices", "pairs"
    spelling: str  # "linear", "transposed", "einsum", "convolution"
    activation: str
    bias: bool
    norm: bool  # over the neurons
    convolved: bool  # the neurons
    tied: bool  # up and down are one matrix
    across: str  # what is done across the neurons, one of ACROSS
    experts: int
    chosen: int
    shared_expert: bool
    normalised: bool  # weights of the chosen experts


@dataclass(frozen=True)
class Form:
    hidden: int
    length: int
    attention: AttentionForm
    mlp: MlpForm
    norm: str  # "by hand", "fused", "layer norm"
    residual: str  # "pre", "post", "sandwich", "parallel", "parallel in one", "norm of the stream", "norm of the sum"
    branch_first: bool
    scale: float
    layer_scale: str  # "none", "number", "channels", "tensor", "tensors" in a list
    held: str  # a plain tensor scales: "none", "stream", "units"
    effect: str  # "none", "attribute", "argument", "object", "buffer", "weights"
    returns: str  # "stream", "tuple"
    sharing: str  # "none", "mlp", "attention", "norm", "twice"


def draw_form(choose: Choose) -> Form:
    """A form whose choices go together. `choose` takes one of a sequence."""
    hidden = choose((6, 8, 12, 12))
    attention = _attention(choose, hidden)
    queries = attention.heads * attention.group
    neurons = choose((2, 3, 5, 7, 8, 11, hidden, max(2, queries * attention.value_size), max(2, queries), 2 * hidden))
    length = choose((5, 7, max(3, attention.heads), max(3, min(queries, 8)), 8))
    one = attention.mixer == "heads" and attention.layout == "separate" and attention.output == "linear"
    residual = choose(
        ("pre", "pre", "pre", "post", "sandwich", "parallel", "norm of the stream", "norm of the sum")
        + ("parallel in one",) * (one and not attention.tied_values)
    )
    effect = choose(("none",) * 6 + ("attribute", "argument", "object", "buffer", "weights"))
    return Form(
        hidden=hidden,
        length=length,
        attention=attention,
        mlp=_mlp(choose, neurons, hidden, plain=residual == "parallel in one"),
        norm=choose(("by hand", "fused", "layer norm")),
        residual=residual,
        branch_first=choose((False, True)),
        scale=choose((1.0, 1.0, 0.3)),
        layer_scale=choose(("none", "none", "none", "number", "channels", "tensor", "tensors")),
        held=choose(("none", "none", "none", "stream", "units")),
        effect=effect,
        returns=choose(("stream", "stream", "tuple")) if effect != "argument" else "stream",
        sharing=choose(("none",) * 5 + ("mlp", "attention", "norm", "twice")),
    )


def _attention(choose: Choose, hidden: int) -> AttentionForm:
    mixer = choose(MIXERS)
    heads = choose((1, 2, 3, 4)) if mixer in ("heads", "latent") else choose((3, 4, hidden, 2 * hidden))
    group = choose((1, 1, 2, 3)) if mixer == "heads" else 1
    key_size = choose((2, 4, 6))
    value_size = choose((key_size, key_size, 3, heads)) if mixer in ("heads", "latent") else 1
    alike = group == 1 and key_size == value_size
    layout = choose(LAYOUTS + LAYOUTS_OF_SINGLE_HEADS * alike) if mixer == "heads" else "separate"
    core = choose(CORES if mixer == "heads" else CORES[:4])
    positions = choose(POSITIONS if mixer == "heads" else ("rotary", "interleaved"))
    column = () if core in ("fused", "baddbmm") else ("column",)
    sinks = choose(("none",) * 4 + column + ("keys",)) if mixer == "heads" else "none"
    masking = choose(("causal", "causal", "built", "given") if core == "fused" else ("built", "given"))
    return AttentionForm(
        mixer=mixer,
        heads=heads,
        group=group,
        key_size=key_size,
        value_size=value_size,
        layout=layout,
        output=choose(("linear", "linear", "einsum", "transposed")),
        core=core,
        expansion=choose(("expand", "interleave") + ("tile",) * (layout != "by group" and core != "grouped")),
        masking=masking,
        filled=choose((False, True)),
        window=choose((False, False, True)),
        positions=positions,
        tables=choose(("computed", "buffer", "tensor", "given")),
        query_norm=choose(("none", "none", "each head", "all heads", "own")),
        output_norm=choose(("none", "none", "each head", "all heads")),
        gate=choose(("none", "none", "each channel", "each head")),
        sinks=sinks,
        cap=core not in ("fused", "baddbmm") and choose((False, False, True)),
        convolved=choose((False, False, False, True)),
        tied_values=layout == "separate" and key_size == value_size and choose((False, False, False, True)),
        across=choose(("none",) * 12 + ("talking", "rolled", "first added", "centred", "numbered")),
        rank=choose((3, 4, 5)),
        query_rank=choose((0, 0, 3)),
        bias=choose((False, True)),
    )


def _mlp(choose: Choose, neurons: int, hidden: int, *, plain: bool) -> MlpForm:
    kind = choose(("plain",) * 4 + ("gated",) * 5 + (() if plain else EXPERTS))
    experts = choose((2, 3, 4))
    apart = kind == "hard scattered"  # its experts see tokens without their places
    spellings = ("linear", "linear", "transposed", "einsum") + ("convolution",) * (not apart)
    spelling = "linear" if plain else choose(spellings)
    return MlpForm(
        kind=kind,
        neurons=neurons,
        layout=choose(("separate", "in order", "slices", "pairs")),
        spelling=spelling,
        activation=choose(("gelu", "silu", "squared relu")),
        bias=choose((False, True)),
        norm=choose((False, False, False, True)),
        convolved=not apart and choose((False, False, False, True)),
        tied=kind == "plain" and spelling == "linear" and not plain and choose((False, False, True)),
        across=choose(
            ("none",) * 15
            + ACROSS
            + ("shuffled",) * (neurons % 2 == 0 and neurons > 4)
            + ("with the stream",) * (neurons == hidden)
        ),
        experts=experts,
        chosen=choose((1, 2)),
        shared_expert=choose((False, True)),
        normalised=choose((False, True)),
    )


def json_of_form(form: Form) -> str:
    """One line, from which `form_of_json` makes the form again."""
    return json.dumps(dataclasses.asdict(form))


def form_of_json(text: str) -> Form:
    values = json.loads(text)
    return Form(**{**values, "attention": AttentionForm(**values["attention"]), "mlp": MlpForm(**values["mlp"])})
