"""The rules that every graph keeps, as a table of sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.fx_graphs import describe, has_tensor, sizes, tensor_of
from estfx.graphs.gather import take
from estfx.graphs.regions import AUTOCAST

__all__ = ["RULES", "verify"]

aten = torch.ops.aten


def _every_value_has_a_shape(gm: GraphModule) -> Iterator[str]:
    for node in gm.graph.nodes:
        bodiless = node.op in ("output", "get_attr") or node.target in AUTOCAST  # bodies of loops have no shape
        if not bodiless and "val" not in node.meta:
            yield f"{describe(node)} has no value"


def _every_shape_equals_its_axes(gm: GraphModule) -> Iterator[str]:
    axes = gm.meta.get(tags.Axes.__qualname__)
    if axes is None:
        return
    indices = tags.get(gm, tags.Indices, tags.Indices())
    births = {n.args[0] for n in gm.graph.nodes if n.target is take}  # still whole; a dimension may be split for it
    births |= {n.args[0] for n in births if n.target is aten.unflatten.int}
    for node in gm.graph.nodes:
        dims = axes.dims.get(node.name)
        if dims is None or not has_tensor(node) or node in births:
            continue
        want = tuple(dim.narrowed_size(indices.kept) for dim in dims)
        have = tuple(  # a size that depends on the data has another name in every run
            size if free_unbacked_symbols(own) else mine
            for own, mine, size in zip_longest(tensor_of(node).shape, sizes(node), want)
        )
        if have != want:
            yield f"{describe(node)} has sizes {sizes(node)}, but its axes say {want}: {', '.join(map(str, dims))}"


def _a_layer_keeps_its_stream(gm: GraphModule) -> Iterator[str]:
    interface = gm.meta.get(tags.Interface.__qualname__)
    if interface is None:
        return
    stream = next((n for n in gm.graph.nodes if n.name == interface.stream), None)
    outputs: Any = gm.graph.output_node().args[0]
    if stream is None:
        yield f"its stream, {interface.stream}, is no value of the graph"
    elif len(outputs) != interface.outputs:
        yield f"the graph gives {len(outputs)} values, its interface says {interface.outputs}"
    elif sizes(outputs[0]) != sizes(stream):
        yield f"the stream comes in with {sizes(stream)} and goes out with {sizes(outputs[0])}"


def _inputs_stand_in_order(gm: GraphModule) -> Iterator[str]:
    interface = gm.meta.get(tags.Interface.__qualname__)
    if interface is None:
        return
    indices = tags.get(gm, tags.Indices, tags.Indices())
    want = [interface.stream, *interface.sides]
    want += [gather.placeholder for gather in indices.gathers] + [name for name, _ in interface.weights]
    got = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    if got != want:
        yield f"the placeholders are {got}, they should be {want}"


RULES: tuple[Callable[[GraphModule], Iterator[str]], ...] = (
    _every_value_has_a_shape,
    _every_shape_equals_its_axes,
    _a_layer_keeps_its_stream,
    _inputs_stand_in_order,
)


def verify(gm: GraphModule) -> None:
    """Raises VerifyError with the first rule that the graph breaks."""
    for rule in RULES:
        for broken in rule(gm):
            raise VerifyError(f"{rule.__name__.strip('_').replace('_', ' ')}: {broken}")
