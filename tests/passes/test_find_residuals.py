from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
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
from shallow_decoders import layer_graph
from tiny_decoders import DECODERS
from torch import nn
from torch.nn import functional as F

from estfx import trace
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import analysis
from estfx.passes.find_residuals import FindResiduals


def found(function: Callable[..., torch.Tensor]) -> tags.Residuals:
    gm = run_passes(graph_of_function(function), analysis()[:4])
    return tags.get(gm, tags.Residuals)


def as_text(residuals: tags.Residuals) -> str:
    lines = [f"{j.join} = {j.skip} + {j.branch}   from {j.fork}, {len(j.nodes)} values" for j in residuals.joins]
    return "\n".join([*lines, "droppable" if residuals.droppable else f"not droppable: {residuals.reason}", ""])


@pytest.mark.parametrize("block", [PreNorm, Mirrored, NormedBranch, NormedStream])
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


def rms(x: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def standardised(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


FORMS: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    # what a layer computes, and its joins as (skip, branch)
    "pre-norm": (lambda m, x: x + m.f(m.norm(x)), ["stream linear"]),
    "mirrored": (lambda m, x: m.f(m.norm(x)) + x, ["stream linear"]),
    "norm behind the branch": (lambda m, x: x + m.norm(m.f(x)), ["stream layer_norm"]),
    "norms on both sides": (lambda m, x: x + m.norm(m.f(m.norm(x))), ["stream layer_norm_1"]),
    "two branches in a row": (lambda m, x: (y := x + m.f(x)) + m.g(y), ["stream linear", "add linear_1"]),
    "a nested add, the stream first": (lambda m, x: (x + m.f(x)) + m.g(x), ["stream linear", "add linear_1"]),
    "a nested add, the stream last": (lambda m, x: m.g(x) + (m.f(x) + x), ["stream linear_1", "add linear"]),
    "parallel branches, added first": (halves, ["stream add"]),
    "a scaled branch": (lambda m, x: x + 0.5 * m.f(x), ["stream mul"]),
    "a scaled stream": (lambda m, x: x * 0.7 + m.f(x) / 3, ["mul div"]),
    "a scaled result": (lambda m, x: (x + m.f(x)) * 0.5, ["stream linear"]),
    "alpha": (lambda m, x: torch.add(x, m.f(x), alpha=0.5), ["stream linear"]),
    "dropout on the branch": (lambda m, x: x + nn.functional.dropout(m.f(x), 0.3), ["stream dropout"]),
    "dropout on the stream": (lambda m, x: nn.functional.dropout(x, 0.3) + m.f(x), ["dropout linear"]),
    "the stream in another dtype": (lambda m, x: (x.double() + m.f(x)).float(), ["to linear"]),
    "a copy of the stream": (lambda m, x: x.clone() + m.f(x), ["clone linear"]),
    "tokens in a row": (lambda m, x: (y := x.reshape(-1, HIDDEN)) + m.f(y), ["reshape linear"]),
    "in place": (lambda m, x: m.f(x).add_(x), ["stream linear"]),
    "in place on the stream": (lambda m, x: x.add_(m.f(x)), ["stream linear"]),
    "a gate from the stream": (lambda m, x: x + m.f(x) * m.g(x).sigmoid(), ["stream mul"]),
    "a branch with a residual of its own": (lambda m, x: x + m.g((y := m.f(x)) + m.norm(y)), ["stream linear_1"]),
    "the stream twice": (lambda m, x: (x + x) + m.f(x), ["add linear"]),
    # norms of the stream itself
    "a norm of the sum": (lambda m, x: m.norm(x + m.f(x)), ["stream linear"]),
    "a norm of the sum, the stream last": (lambda m, x: m.norm(m.f(x) + x), ["stream linear"]),
    "two of them": (
        lambda m, x: m.norm((y := m.norm(x + m.f(x))) + m.g(y)),
        ["stream linear", "layer_norm linear_1"],
    ),
    "two of them, the stream last": (
        lambda m, x: m.norm(m.g(y := m.norm(m.f(x) + x)) + y),
        ["stream linear", "layer_norm linear_1"],
    ),
    "an RMS norm": (lambda m, x: F.rms_norm(x + m.f(x), (HIDDEN,), m.norm.weight), ["stream linear"]),
    "an RMS norm by hand": (lambda m, x: rms(x + m.f(x), m.norm.weight), ["stream linear"]),
    "the weight first": (lambda m, x: m.norm.weight * rms(m.f(x) + x, 1.0), ["stream linear"]),
    "in another dtype": (
        lambda m, x: m.norm.weight * rms((x + m.f(x)).double(), 1.0).to(x.dtype),
        ["stream linear"],
    ),
    "a layer norm by hand": (
        lambda m, x: standardised(x + m.f(x), m.norm.weight, m.norm.bias),
        ["stream linear"],
    ),
    "a sandwich and a norm of the sum": (
        lambda m, x: m.norm(x + m.norm(m.f(m.norm(x)))),
        ["stream layer_norm_1"],
    ),
    "the normed stream goes on": (lambda m, x: m.norm(x) + m.f(x), ["layer_norm linear"]),
    "the normed stream goes on, last": (lambda m, x: m.f(x) + m.norm(x), ["layer_norm linear"]),
    "the normed stream goes both ways": (lambda m, x: (y := m.norm(x)) + m.f(y), ["layer_norm linear"]),
    "both ways, the branch first": (lambda m, x: m.f(y := m.norm(x)) + y, ["layer_norm linear"]),
    "both are normed, the branch first": (lambda m, x: m.norm(m.f(x)) + m.norm(x), ["layer_norm_1 layer_norm"]),
    "both are normed": (lambda m, x: m.norm(x) + m.norm(m.f(x)), ["layer_norm layer_norm_1"]),
    # learned scales
    "a learned scale on the branch": (lambda m, x: x + m.norm.weight * m.f(x), ["stream mul"]),
    "a learned scale on the stream": (lambda m, x: x * m.norm.weight + m.f(x), ["mul linear"]),
    "learned scales on both": (lambda m, x: m.norm.bias * m.f(x) + x * m.norm.weight, ["mul_1 mul"]),
    "a learned shift of the result": (lambda m, x: (x + m.f(x)) + m.norm.weight, ["stream linear"]),
    "a scale for each position": (
        lambda m, x: x * (t := m.g(x)[..., :1].sigmoid()) + m.f(x) * (1 - t),
        ["mul mul_1"],
    ),
    # a branch that is nothing but a norm
    "a norm for a branch": (lambda m, x: x + m.norm(x), ["stream layer_norm"]),
    "a norm by hand for a branch": (lambda m, x: x + rms(x, m.norm.weight), ["stream mul_1"]),
}
MIRRORED_NORMS: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    "a norm for a branch, first": (lambda m, x: m.norm(x) + x, ["stream layer_norm"]),
    "a norm by hand for a branch, first": (lambda m, x: rms(x, m.norm.weight) + x, ["stream mul_1"]),
    "a scaled copy for a branch, first": (lambda m, x: x * m.norm.weight + x, ["stream mul"]),
}


@pytest.mark.parametrize("form", MIRRORED_NORMS)
def test_the_stream_itself_is_never_the_branch(form: str) -> None:
    function, joins = MIRRORED_NORMS[form]
    assert [f"{j.skip} {j.branch}" for j in found(function).joins] == joins


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


def several_streams(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Two copies of the stream are weighed into one for the branch, and get its result by weights of their own."""
    weights = layer.f.weight[:2, :2]
    streams = torch.stack((x, x.roll(1, dims=-1)))
    y = layer.g(torch.einsum("sbtd,s->btd", streams, layer.norm.weight[:2]))
    streams = torch.einsum("sbtd,sr->rbtd", streams, weights) + layer.norm.bias[:2, None, None, None] * y
    return streams.sum(0)


ENDS_AT = "its output is not x + f(x) of its input x: the skip connection, followed back from the output, ends at "
REFUSED: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "no skip": (lambda m, x: m.f(m.norm(x)), ENDS_AT + "linear = linear.default"),
    "two streams of the same": (lambda m, x: m.f(x) + m.g(x), ENDS_AT + "add = add.Tensor"),
    "the stream minus the branch": (lambda m, x: x - m.f(x), ENDS_AT + "sub = sub.Tensor"),
    "the stream after a branch alone": (lambda m, x: (y := m.f(x)) + m.g(y), ENDS_AT + "linear = linear.default"),
    "the stream moved along": (lambda m, x: x.roll(1, dims=1) + m.f(x), ENDS_AT + "add = add.Tensor"),
    "only the stream": (lambda m, x: x + x, "it has no residual join: its output is its stream, scaled at most"),
    "a norm and a branch, nothing around them": (
        lambda m, x: m.f(m.norm(x)),
        ENDS_AT + "linear = linear.default",
    ),
    "a gate between stream and branch": (
        lambda m, x: x * (t := m.g(x).sigmoid()) + m.f(x) * (1 - t),
        ENDS_AT + "add = add.Tensor",
    ),
    "a gate for each channel, from all positions": (
        lambda m, x: x * m.g(x).mean(1, keepdim=True).sigmoid() + m.f(x),
        ENDS_AT + "add = add.Tensor",
    ),
    "several streams": (several_streams, ENDS_AT + "sum_1 = sum.dim_IntList"),
    "only a norm": (lambda m, x: m.norm(x), "it has no residual join: its output is its stream, scaled at most"),
    "a norm by hand": (
        lambda m, x: rms(x, m.norm.weight),
        "it has no residual join: its output is its stream, scaled at most",
    ),
    "the stream scaled": (lambda m, x: x * 2, "it has no residual join: its output is its stream, scaled at most"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refusal_says_where_the_way_back_ends(form: str) -> None:
    function, reason = REFUSED[form]
    residuals = found(function)
    assert not residuals.droppable
    assert residuals.reason.split(" (")[0] == reason
    if reason.startswith(ENDS_AT):
        assert "(hand_written.py:" in residuals.reason  # the line of the model's own code


def test_refusal_keeps_no_join() -> None:
    assert found(several_streams).joins == ()


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
    gm = run_passes(decoder.programs[decoder.layers["layers.0"]], analysis()[:4])
    residuals = tags.get(gm, tags.Residuals)
    assert len(residuals.joins) == 1
    assert residuals.reason == "something outside reads another output of it than the stream"


PARALLEL = {"gpt_neox", "gptj", "falcon", "falcon_new"}  # attention and MLP are added before they join the stream


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
def test_layers_of_transformers_are_droppable(name: str) -> None:
    residuals = tags.get(run_passes(layer_graph(name), analysis()[:4]), tags.Residuals)
    assert residuals.droppable
    assert len(residuals.joins) == (1 if name in PARALLEL else 2)
