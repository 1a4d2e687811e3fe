"""Convolutions: channels are mixed by a contraction, or, where each has its own filter, kept apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from estfx.axes.algebra import Ref
from estfx.axes.walk import Arguments, Dims, Resize, Walk, resizer, rule
from estfx.graphs import describe

aten = torch.ops.aten
NO_PADDING = ("valid", "same")  # of a filter that is one wide
CONVOLUTIONS = (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding)


@rule(*CONVOLUTIONS)
def convolution(walk: Walk, node: Node, a: Arguments) -> Dims | list[Dims]:
    """`out[b, g·o, t] = Σ_{i, s} input[b, g·i, t + s] · weight[g·o, i, s] + bias[g·o]`, for each of the groups `g`.

    What a filter slides over stays whole, unless it is one wide and meets each place once. So do the inputs of a
    group, where there are several of both: the dimension that the sum runs over holds the groups too, over which
    nothing is summed and which must not be scaled.
    """
    x, weight, groups = walk.of(a["input"]), walk.of(a["weight"]), a["groups"]
    filters = len(weight) - 2
    batch = x[: len(x) - filters - 1]
    channels, *places = x[len(batch) :]
    inputs, outputs = _by_group(walk, channels, groups), _by_group(walk, weight[0], groups)
    if inputs is None or outputs is None:
        return walk.pin_all(node, f"groups do not divide the channels at {describe(node)}")
    (group, inner), (same, outer) = inputs, outputs
    walk.unify(node, group, same)
    walk.unify(node, inner, weight[1])
    if groups == 1:
        walk.close(node, "input", len(batch), channels, (outer,))
    elif walk.algebra.size(inner) > 1:
        walk.pin(f"summed over in groups at {describe(node)}", inner)
    if a["bias"] is not None:
        walk.unify(node, weight[0], walk.of(a["bias"])[0])
    after = list(walk.fresh_like(node)[len(batch) + 1 :])
    if any(walk.algebra.size(ref) > 1 for ref in weight[2:]):
        walk.mix(node)
    for i, (place, width) in enumerate(zip(places, weight[2:], strict=True)):
        if walk.algebra.size(width) == 1 and _each(a["stride"], i) == 1 and _each(a["padding"], i) in (0, *NO_PADDING):
            after[i] = place
        else:
            walk.pin(f"a filter slides over it at {describe(node)}", place, after[i], width)
    return (*batch, weight[0], *after)


def _each(given: Any, position: int) -> Any:
    """An option for one of the places: it is given for all, or for each."""
    return given if isinstance(given, (int, str)) else given[position % len(given)]


def _by_group(walk: Walk, channels: Ref, groups: int) -> tuple[Ref, Ref] | None:
    return walk.algebra.split_minor(channels, walk.algebra.size(channels) // groups)


@resizer(*CONVOLUTIONS)
def resize_convolution(resize: Resize, node: Node, a: Arguments) -> dict[str, Any]:
    """The groups are what a filter's own inputs leave of the channels."""
    x, weight = resize.dims(a["input"]), resize.dims(a["weight"])
    channels, inner = x[len(x) - len(weight) + 1], weight[1]
    if a["groups"] == 1 or not resize.changes(channels):
        return {}
    return {"groups": channels.narrowed_size(resize.kept) // inner.narrowed_size(resize.kept)}
