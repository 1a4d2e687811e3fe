"""If all units are alike, a part of them, scaled, is the whole: it finds factors that are counted twice."""

from __future__ import annotations

import pytest
import torch
from hand_written import HEAD_DIM, HEADS, HIDDEN, INNER, NEURONS, Attention, Chain, PreNorm, SoftExperts
from tiny_decoders import DECODERS, build
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.graphs import tags
from estfx.programs import Variant, analysed, resolve
from estfx.programs.equal_units import differing_factor
from estfx.tracing import LayerCall, flatten, trace


def in_double(variant: Variant, call: LayerCall) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    leaves, _ = flatten(call.args, call.kwargs)
    paths = [path for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
    inputs = [leaves[i] for i in variant.traced.input_leaves]
    weights = [resolve(call.module, path) for path in paths]
    double = [[x.detach().double() if x.is_floating_point() else x for x in xs] for xs in (inputs, weights)]
    return double[0], double[1]


def test_experts_whose_router_divides_by_what_is_kept_are_not_narrowed() -> None:
    model = Chain(SoftExperts(), SoftExperts())
    estfx.transform(model, estfx.Schedule.est(30), example_inputs=(torch.randn(2, 5, HIDDEN),), compile=False)
    report: estfx.Report = model.report  # type: ignore[assignment]
    for layer in report.layers:
        assert [(axis.role, axis.size) for axis in layer.axes] == [("neurons_2", INNER)]  # as before it was verified
        assert any("(6) stay whole" in note and "divides by what is kept" in note for note in layer.notes)


class DeadFirstNeuron(SoftExperts):
    """If all of its neurons are as the first, experts give nothing, whichever are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(INNER).index_fill(0, torch.tensor(0), -100.0))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        share = self.router(x_BTD).softmax(-1)
        inner = F.relu(torch.einsum("btd,edn->bten", x_BTD, self.up) + self.shift)
        return x_BTD + torch.einsum("bten,end,bte->btd", inner, self.down, share)


def test_nor_are_those_whose_first_neuron_gives_nothing() -> None:
    model = Chain(DeadFirstNeuron(), DeadFirstNeuron())
    estfx.transform(model, estfx.Schedule.est(30), example_inputs=(torch.randn(2, 5, HIDDEN),), compile=False)
    for layer in model.report.layers:  # type: ignore[union-attr]
        assert [axis.size for axis in layer.axes] == [INNER]
        assert any("(6) stay whole" in note and "divides by what is kept" in note for note in layer.notes)


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
def test_all_axes_of_decoders_pass(name: str) -> None:
    decoder = trace(build(name))
    for info in decoder.infos.values():
        variant = analysed(decoder.traced[info.program])
        assert variant.roles.found
        for role in variant.roles.found:
            assert differing_factor(variant, [role.axis], *in_double(variant, info.call)) < 1e-12
        break


class NormInTheGradientAlone(nn.Module):
    """The norm of the neurons grows with their number. It is a factor in the backward pass, and none in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x_BTD)
        norm = hidden.norm(dim=-1, keepdim=True)
        return x_BTD + self.down(F.gelu(hidden)) * (1 + norm - norm.detach())


def test_a_factor_that_is_wrong_in_the_gradient_alone_is_found() -> None:
    model = Chain(NormInTheGradientAlone(), NormInTheGradientAlone())
    estfx.transform(model, estfx.Schedule.est(30), example_inputs=(torch.randn(2, 5, HIDDEN),), compile=False)
    for layer in model.report.layers:  # type: ignore[union-attr]
        assert not layer.axes  # type: ignore[union-attr]
        assert any("neurons (14) stay whole: with all of them alike" in note for note in layer.notes)  # type: ignore[union-attr]


class Sloped(Attention):
    """ALiBi whose slopes are written down in the code: a constant of the graph, one number for each head."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x_BTD.shape
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125])
        past = torch.arange(length) - torch.arange(length)[:, None]
        q, k, v = (y.view(batch, length, HEADS, HEAD_DIM).transpose(1, 2) for y in self.qkv(x_BTD).split(hidden, dim=2))
        scores = q @ k.mT / HEAD_DIM**0.5 + slopes[:, None, None] * past
        weights = scores.masked_fill(past > 0, float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, hidden))


def test_constants_of_heads_are_made_alike_too() -> None:
    model = Chain(PreNorm(Sloped()), PreNorm(Sloped()))
    estfx.transform(model, estfx.Schedule.est(30), example_inputs=(torch.randn(2, 5, HIDDEN),), compile=False)
    for layer in model.report.layers:  # type: ignore[union-attr]
        assert {axis.role: axis.size for axis in layer.axes} == {"heads": HEADS, "neurons": NEURONS}  # type: ignore[union-attr]
        assert layer.notes == []  # type: ignore[union-attr]


class SparseByStatistic(nn.Module):
    """Of neurons those above the mean are kept, and the result is normed: if all are alike, it is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        inner = self.up(x_BTD)
        above = F.relu(inner - inner.mean(-1, keepdim=True) - 0.5 * inner.std(-1, keepdim=True, unbiased=False))
        return x_BTD + F.rms_norm(self.down(F.gelu(above)), (HIDDEN,), eps=1e-38)


def test_where_units_that_are_alike_leave_rounding_alone_nothing_is_said() -> None:
    model = Chain(SparseByStatistic(), SparseByStatistic())
    estfx.transform(model, estfx.Schedule.est(30), example_inputs=(torch.randn(2, 5, HIDDEN),), compile=False)
    for layer in model.report.layers:  # type: ignore[union-attr]
        assert {axis.role: axis.size for axis in layer.axes} == {"neurons": NEURONS}  # type: ignore[union-attr]
