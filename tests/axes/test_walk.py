"""What the walk knows beside dimensions: which values carry the stream's numbers, and where positions come together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from brute_force import make_inputs, record
from hand_written import HIDDEN, Layer, graph_of_function
from torch.nn import functional as F

from estfx.axes.walk import Walk
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.passes import analysis

Function = Callable[[Layer, torch.Tensor], torch.Tensor]


def walked(function: Function) -> tuple[Walk, tags.Axes]:
    gm = run_passes(graph_of_function(function), analysis()[:1])
    walk = Walk(gm, tags.get(gm, tags.Interface))
    return walk, walk.run()


def names(walk: Walk) -> set[str]:
    return {node.name for node in walk.carriers}


def written(m: Layer, x: torch.Tensor) -> torch.Tensor:
    memory = torch.zeros_like(m.f.weight[:1]).expand(*x.shape).clone()
    memory[..., :8] = x[..., :8]
    return x + m.f(memory)


def test_memory_that_the_stream_is_written_into_carries_its_numbers() -> None:
    walk, _ = walked(written)
    assert {"stream", "clone", "copy_", "linear"} <= names(walk)
    assert not {"f_weight", "zeros_like", "expand"} & names(walk)


def test_memory_is_no_carrier_before_it_is_written() -> None:
    def function(m: Layer, x: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros_like(m.f.weight)
        before = memory @ m.g.weight
        memory.fill_(2.0)
        return x + m.f(before.sum(0) + x)

    walk, _ = walked(function)
    assert not {"zeros_like", "matmul", "fill_"} & names(walk)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="views that were made before the write are not looked at again"
)
def test_so_does_a_view_that_was_made_before() -> None:
    def function(m: Layer, x: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros_like(x @ m.f.weight * 0 > 0, dtype=x.dtype)
        turned = memory.transpose(1, 2)
        memory.copy_(x)
        return x + x @ (turned @ x)

    walk, _ = walked(function)
    assert {"zeros_like", "transpose"} <= names(walk)


def test_what_only_depends_on_positions_carries_nothing() -> None:
    def function(m: Layer, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1])
        angles = places[:, None] * torch.ones(HIDDEN)
        return x * angles.cos() + m.f(x).masked_fill(x > 0, 0.0)

    walk, _ = walked(function)
    assert {"stream", "linear", "mul_1", "masked_fill"} <= names(walk)
    assert not {"arange", "mul", "cos", "gt"} & names(walk)


@pytest.mark.parametrize("op", ["mul_", "add_"])
def test_a_write_into_what_the_layer_is_given_pins_it(op: str) -> None:
    def function(m: Layer, x: torch.Tensor) -> torch.Tensor:
        getattr(m.f.weight.detach(), op)(0.5)
        return x + m.g(F.linear(x, m.f.weight).relu())

    _, axes = walked(function)
    (axis,) = axes.dims["linear"][-1].axes()
    assert axes.obstacle(axis).startswith(f"a value is changed in place at {op}")


def test_a_write_into_memory_of_its_own_pins_nothing() -> None:
    def function(m: Layer, x: torch.Tensor) -> torch.Tensor:
        y = m.f(x)
        memory = torch.empty_like(y)
        memory.copy_(y)
        return x + m.g(memory.relu())

    _, axes = walked(function)
    (axis,) = axes.dims["linear"][-1].axes()
    assert axes.obstacle(axis) == ""


def test_all_that_leaves_the_layer_stays_whole() -> None:
    aten = torch.ops.aten

    def function(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> list[torch.Tensor]:
        inner = aten.linear.default(x, up)
        return [aten.add.Tensor(x, aten.linear.default(aten.relu.default(inner), down)), inner]

    for outputs, left, obstacle in ((1, (), ""), (2, (), "it leaves the layer"), (2, (1,), "")):
        recorded = record(function, make_inputs([(3, 5), (7, 5), (5, 7)], np.random.default_rng(0)))
        recorded.gm.graph.output_node().args = (tuple(recorded.outputs[:outputs]),)
        axes = Walk(recorded.gm, tags.Interface("x0", (), (), outputs, left)).run()
        (neurons,) = axes.dims[recorded.outputs[1].name][-1].axes()
        assert axes.obstacle(neurons) == obstacle


def test_what_an_operator_without_a_rule_gives_stays_whole() -> None:
    _, axes = walked(lambda m, x: x + m.g(m.f(x).renorm(2, 0, 1.0)))
    for dim in axes.dims["renorm"]:
        for axis in dim.axes():
            assert axes.obstacle(axis).startswith(
                ("no rule for the operator at renorm", "it is a dimension of the res")
            )


MIXING: dict[str, Function] = {
    "a convolution": lambda m, x: (
        x + F.conv1d(x.mT, m.f.weight[:, :1, None].expand(-1, 1, 2), padding=1, groups=HIDDEN)[..., 1:].mT
    ),
    "a sum in order": lambda m, x: x + x.cumsum(1),
    "a roll": lambda m, x: x + x.roll(1, dims=1),
    "a shift": lambda m, x: x + F.pad(x, (0, 0, 1, 0))[:, :-1],
    "one position": lambda m, x: x + x[:, 0][:, None],
    "all positions one by one": lambda m, x: x + torch.stack(x.unbind(0), 0) + x[:, -1:].unbind(1)[0][:, None],
    "a product of two from the stream": lambda m, x: x + (x @ m.f(x).mT) @ m.g(x),
    "an einsum of two from the stream": lambda m, x: x + torch.einsum("btd,bsd->bt", x, m.f(x))[..., None],
    "an einsum of three from the stream": lambda m, x: x + torch.einsum("btd,bsd,bse->bte", x, m.f(x), m.g(x)),
}
APART: dict[str, Function] = {
    "a projection": lambda m, x: x + m.f(x),
    "an einsum with a weight": lambda m, x: x + torch.einsum("btd,ed->bte", x, m.f.weight),
    "a weight made of weights": lambda m, x: x + F.linear(x, m.f.weight @ m.g.weight),
    "one channel": lambda m, x: x + x[..., :1],
    "channels one by one": lambda m, x: x + torch.stack(x.unbind(-1)[::-1], -1),
    "channels made more": lambda m, x: x + F.pad(x, (1, 0))[..., :-1],
    "a norm": lambda m, x: x + m.norm(x),
    "a filter of one position": lambda m, x: x + F.conv1d(x.mT, m.f.weight[..., None]).mT,
}


@pytest.mark.parametrize("form", MIXING)
def test_what_brings_positions_together(form: str) -> None:
    assert walked(MIXING[form])[1].mixing


@pytest.mark.parametrize("form", APART)
def test_what_leaves_positions_apart(form: str) -> None:
    assert walked(APART[form])[1].mixing == frozenset()
