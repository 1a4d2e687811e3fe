from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import DECODERS, build
from hand_written import (
    HIDDEN,
    Layer,
    Mirrored,
    NormedBranch,
    NormedStream,
    PreNorm,
    Stack,
    before,
    graph_of_function,
    stream,
)
from torch import nn

from estfx import tags, trace
from estfx.passes import analysis
from estfx.passes.find_residuals import FindResiduals
from estfx.pipeline import run_passes
from estfx.printing import graph_text


def found(function: Callable[..., torch.Tensor]) -> tags.Residuals:
    gm = run_passes(graph_of_function(function), analysis()[:2])
    return tags.get(gm, tags.Residuals)


def as_text(residuals: tags.Residuals) -> str:
    lines = [f"{j.join} = {j.skip} + {j.branch}   from {j.fork}, {len(j.nodes)} values" for j in residuals.joins]
    return "\n".join([*lines, "droppable" if residuals.droppable else f"not droppable: {residuals.reason}", ""])


@pytest.mark.parametrize("block", [PreNorm, Mirrored, NormedBranch])
def test_golden(block: type[nn.Module], golden: Callable[[str, str], None]) -> None:
    gm = before(FindResiduals, block())
    assert FindResiduals().run(gm) == 2
    golden(f"find_residuals_{block.__name__.lower()}", f"{graph_text(gm)}\n{as_text(tags.get(gm, tags.Residuals))}")


def test_it_leaves_the_graph_alone() -> None:
    gm = before(FindResiduals, PreNorm())
    text = graph_text(gm)
    run_passes(gm, [FindResiduals()])
    assert graph_text(gm) == text


def halves(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """A branch of two parts, which are added before they join the stream."""
    y = layer.norm(x)
    return (layer.f(y) + layer.g(y)) + x


FORMS: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    # what a layer computes, and its joins as (skip, branch)
    "pre-norm": (lambda l, x: x + l.f(l.norm(x)), ["stream linear"]),
    "mirrored": (lambda l, x: l.f(l.norm(x)) + x, ["stream linear"]),
    "norm behind the branch": (lambda l, x: x + l.norm(l.f(x)), ["stream layer_norm"]),
    "norms on both sides": (lambda l, x: x + l.norm(l.f(l.norm(x))), ["stream layer_norm_1"]),
    "two branches in a row": (lambda l, x: (y := x + l.f(x)) + l.g(y), ["stream linear", "add linear_1"]),
    "a nested add, the stream first": (lambda l, x: (x + l.f(x)) + l.g(x), ["stream linear", "add linear_1"]),
    "a nested add, the stream last": (lambda l, x: l.g(x) + (l.f(x) + x), ["stream linear_1", "add linear"]),
    "parallel branches, added first": (halves, ["stream add"]),
    "a scaled branch": (lambda l, x: x + 0.5 * l.f(x), ["stream mul"]),
    "a scaled stream": (lambda l, x: x * 0.7 + l.f(x) / 3, ["mul div"]),
    "a scaled result": (lambda l, x: (x + l.f(x)) * 0.5, ["stream linear"]),
    "alpha": (lambda l, x: torch.add(x, l.f(x), alpha=0.5), ["stream linear"]),
    "dropout on the branch": (lambda l, x: x + nn.functional.dropout(l.f(x), 0.3), ["stream dropout"]),
    "dropout on the stream": (lambda l, x: nn.functional.dropout(x, 0.3) + l.f(x), ["dropout linear"]),
    "the stream in another dtype": (lambda l, x: (x.double() + l.f(x)).float(), ["to linear"]),
    "a copy of the stream": (lambda l, x: x.clone() + l.f(x), ["clone linear"]),
    "tokens in a row": (lambda l, x: (y := x.reshape(-1, HIDDEN)) + l.f(y), ["reshape linear"]),
    "in place": (lambda l, x: l.f(x).add_(x), ["stream linear"]),
    "in place on the stream": (lambda l, x: x.add_(l.f(x)), ["stream linear"]),
    "a gate from the stream": (lambda l, x: x + l.f(x) * l.g(x).sigmoid(), ["stream mul"]),
    "a branch with a residual of its own": (lambda l, x: x + l.g((y := l.f(x)) + l.norm(y)), ["stream linear_1"]),
    "the stream twice": (lambda l, x: (x + x) + l.f(x), ["add linear"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    function, joins = FORMS[form]
    if form == "tokens in a row":
        residuals = found(lambda layer, x: function(layer, x).view(x.shape))
    else:
        residuals = found(function)
    assert [f"{j.skip} {j.branch}" for j in residuals.joins] == joins
    assert residuals.droppable
    assert residuals.reason == ""
    for join in residuals.joins:
        assert join.branch in join.nodes
        assert join.fork not in join.nodes
        assert join.join not in join.nodes


ENDS_AT = "its output does not lead back to its stream through residual joins: they end at "
REFUSED: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "no skip": (lambda l, x: l.f(l.norm(x)), ENDS_AT + "linear = linear.default"),
    "a norm on the stream": (lambda l, x: l.norm(x + l.f(x)), ENDS_AT + "layer_norm = layer_norm.default"),
    "two streams of the same": (lambda l, x: l.f(x) + l.g(x), ENDS_AT + "add = add.Tensor"),
    "a learned scale on the stream": (lambda l, x: x * l.norm.weight + l.f(x), ENDS_AT + "add = add.Tensor"),
    "something else is added": (lambda l, x: (x + l.f(x)) + l.norm.weight, ENDS_AT + "add_1 = add.Tensor"),
    "the stream minus the branch": (lambda l, x: x - l.f(x), ENDS_AT + "sub = sub.Tensor"),
    "the stream after a branch alone": (lambda l, x: (y := l.f(x)) + l.g(y), ENDS_AT + "linear = linear.default"),
    "the stream moved along": (lambda l, x: x.roll(1, dims=1) + l.f(x), ENDS_AT + "add = add.Tensor"),
    "only the stream": (lambda l, x: x + x, "it has no residual join: its output is its stream, scaled at most"),
    "the stream scaled": (lambda l, x: x * 2, "it has no residual join: its output is its stream, scaled at most"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refusal_says_where_the_way_back_ends(form: str) -> None:
    function, reason = REFUSED[form]
    residuals = found(function)
    assert not residuals.droppable
    assert residuals.reason.split(" (")[0] == reason
    if reason.startswith(ENDS_AT):
        assert "(hand_written.py:" in residuals.reason  # the line of the model's own code


def test_refusal_for_post_norm_keeps_no_join() -> None:
    gm = run_passes(before(FindResiduals, NormedStream()), [FindResiduals()])
    assert tags.get(gm, tags.Residuals).joins == ()


class WithWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x_BTD: torch.Tensor, shared: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return x_BTD + self.f(x_BTD), x_BTD.mean(-1)


class Sharing(Stack):
    """Each layer reads what the one before it gave beside the stream."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        shared = None
        for layer in self.layers:
            x_BTD, shared = layer(x_BTD, shared)
        return x_BTD


def test_refusal_for_a_layer_of_which_more_than_the_stream_is_read() -> None:
    decoder = trace(Sharing(WithWeights(), WithWeights()), (stream(),))
    gm = run_passes(decoder.programs[decoder.layers["layers.0"]], analysis()[:2])
    residuals = tags.get(gm, tags.Residuals)
    assert len(residuals.joins) == 1
    assert residuals.reason == "something outside reads another output of it than the stream"


PARALLEL = {"gpt_neox", "gptj", "falcon", "falcon_new"}  # attention and MLP are added before they join the stream


@pytest.mark.parametrize("name", DECODERS)
def test_layers_of_transformers_are_droppable(name: str) -> None:
    depth = "n_layer" if "n_layer" in DECODERS[name][1] else "num_hidden_layers"
    for gm in trace(build(name, **{depth: 1})).programs.values():
        residuals = tags.get(run_passes(gm, analysis()[:2]), tags.Residuals)
        assert residuals.droppable
        assert len(residuals.joins) == (1 if name in PARALLEL else 2)
