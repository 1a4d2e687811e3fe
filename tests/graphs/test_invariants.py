from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hand_written import PreNorm, analysed, halved
from torch.fx import GraphModule, Node

from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.fx_graphs import clone
from estfx.graphs.invariants import RULES, verify
from estfx.graphs.pipeline import run_passes
from estfx.passes import specialisation

aten = torch.ops.aten


@pytest.fixture(scope="module")
def whole() -> GraphModule:
    return analysed(PreNorm())


@pytest.fixture(scope="module")
def narrowed(whole: GraphModule) -> GraphModule:
    return run_passes(clone(whole), specialisation(halved(whole)))


def first(gm: GraphModule, target: object) -> Node:
    return next(n for n in gm.graph.nodes if n.target is target)


def test_every_rule_holds(whole: GraphModule, narrowed: GraphModule) -> None:
    verify(whole)
    verify(narrowed)
    verify(GraphModule(torch.nn.Module(), _empty()))  # a graph without tags


def _empty() -> torch.fx.Graph:
    graph = torch.fx.Graph()
    graph.output(())
    return graph


def without_value(gm: GraphModule) -> None:
    del first(gm, aten.gelu.default).meta["val"]


def with_another_shape(gm: GraphModule) -> None:
    gelu = first(gm, aten.gelu.default)
    gelu.meta["val"] = first(gm, aten.add.Tensor).meta["val"]


def with_another_dimension(gm: GraphModule) -> None:
    axes = tags.get(gm, tags.Axes)
    tags.put(gm, replace(axes, dims={**axes.dims, "gelu": axes.dims["add"]}))


def with_another_output(gm: GraphModule) -> None:
    gm.graph.output_node().args = ((first(gm, aten.gelu.default),),)


def with_two_outputs(gm: GraphModule) -> None:
    (out,) = gm.graph.output_node().args[0]  # type: ignore[misc]
    gm.graph.output_node().args = ((out, out),)


def without_stream(gm: GraphModule) -> None:
    tags.put(gm, replace(tags.get(gm, tags.Interface), stream="lake"))


def with_weights_in_another_order(gm: GraphModule) -> None:
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    placeholders[-2].prepend(placeholders[-1])


FAULTS: list[tuple[Callable[[GraphModule], None], str]] = [
    (without_value, "every value has a shape: gelu = gelu.default (hand_written.py:{}) has no value"),
    (
        with_another_shape,
        "every shape equals its axes: gelu = gelu.default (hand_written.py:{}) has sizes (3, 17, 40), but its axes say "
        "(3, 17, 56): ",
    ),
    (
        with_another_dimension,
        "every shape equals its axes: gelu = gelu.default (hand_written.py:{}) has sizes (3, 17, 56), but its axes say "
        "(3, 17, 40): ",
    ),
    (
        with_another_output,
        "a layer keeps its stream: the stream comes in with (3, 17, 40) and goes out with (3, 17, 56)",
    ),
    (with_two_outputs, "a layer keeps its stream: the graph gives 2 values, its interface says 1"),
    (without_stream, "a layer keeps its stream: its stream, lake, is no value of the graph"),
    (with_weights_in_another_order, "inputs stand in order: the placeholders are ['stream', 'attention_qkv_weight', "),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_breaks_its_rule(
    whole: GraphModule, fault: Callable[[GraphModule], None], sentence: str
) -> None:
    gm = clone(whole)
    fault(gm)
    with pytest.raises(VerifyError) as error:
        verify(gm)
    start, _, end = sentence.partition("{}")
    assert str(error.value).startswith(start)
    assert end in str(error.value)


def test_every_rule_has_a_planted_fault() -> None:
    broken = {sentence.partition(":")[0] for _, sentence in FAULTS}
    assert broken == {rule.__name__.strip("_").replace("_", " ") for rule in RULES}


def test_a_size_that_was_not_computed_again_is_found(narrowed: GraphModule) -> None:
    gm = clone(narrowed)
    view = first(gm, aten.view.default)
    view.meta["val"] = torch.empty(3, 17, 5, 8, device="meta")
    with pytest.raises(VerifyError, match=r"view = .* has sizes \(3, 17, 5, 8\), but its axes say \(3, 17, 2, 8\)"):
        verify(gm)


def test_a_weight_may_be_whole_only_where_units_are_taken_from_it(narrowed: GraphModule) -> None:
    gm = clone(narrowed)
    take = next(n for n in gm.graph.nodes if n.name == "take_3")
    take.replace_all_uses_with(take.args[0])
    gm.graph.erase_node(take)
    with pytest.raises(VerifyError, match=r"mlp_up_weight = .* has sizes \(56, 40\), but its axes say \(28, 40\)"):
        verify(gm)


def test_an_index_input_that_is_missing_is_found(narrowed: GraphModule) -> None:
    gm = clone(narrowed)
    indices = tags.get(gm, tags.Indices)
    tags.put(gm, replace(indices, gathers=indices.gathers[1:]))
    with pytest.raises(VerifyError, match=r"inputs stand in order: .*index_heads"):
        verify(gm)
