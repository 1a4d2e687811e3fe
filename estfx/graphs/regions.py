"""Regions of a layer that run with their own gradient mode or autocast state, put back into the graph around them.

Export wraps the body of `with torch.no_grad()` and `with torch.autocast(...)` into a graph of its own, which no rule
could look into. Here it becomes ordinary nodes: what enters a region without gradients is detached, and a region whose
autocast state is another than that around it stands between a node that enters it and one that leaves it.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from estfx.graphs.aliasing import CASTS, is_view
from estfx.graphs.autocast import autocasts
from estfx.graphs.fx_graphs import has_tensor, tensor_of

__all__ = ["inline_regions"]

WITH_GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
WITH_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
ENTER, EXIT = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast
AUTOCAST = (ENTER, EXIT)
REGIONS = (WITH_GRAD_MODE, WITH_AUTOCAST)
aten = torch.ops.aten


def inline_regions(gm: GraphModule) -> None:
    """Inlines every such region, in place. Runs in the autocast state that the graph was exported in."""
    while regions := [node for node in gm.graph.nodes if node.target in REGIONS]:
        for node in regions:
            _inline(gm, node)


def _inline(gm: GraphModule, node: Node) -> None:
    graph = gm.graph
    with graph.inserting_before(node):
        if node.target is WITH_GRAD_MODE:
            enabled, body, *given = node.args
            operands = list(given) if enabled else [_detached(gm, value) for value in given]
            results = _copied(gm, body, operands, given)
        else:
            device_type, dtype, enabled, cache, body, *given = node.args
            if _is_in_force(node, device_type, dtype, enabled):
                results = _copied(gm, body, given, given)
            else:
                state = (device_type, dtype, enabled, cache)
                entered = graph.call_function(ENTER, state)
                results = _copied(gm, body, given, given)
                graph.call_function(EXIT, (entered,))
    for user in list(node.users):
        assert user.target is operator.getitem, f"{user} reads a region as a whole"
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _is_in_force(node: Node, device_type: Any, dtype: Any, enabled: Any) -> bool:
    """Whether that is the state of the innermost region around the node, or, outside of all, that of the export."""
    around: list[Node] = []
    for before in node.graph.nodes:
        if before is node:
            break
        if before.target is ENTER and before.args[0] == device_type:
            around.append(before)
        elif before.target is EXIT and before.args[0] in around:
            around.remove(before.args[0])
    if around:
        _, same, on, _ = around[-1].args
        return bool(on == enabled and (not enabled or same == dtype))
    if autocasts(device_type) != enabled:
        return False
    return bool(not enabled or dtype is None or torch.get_autocast_dtype(device_type) == dtype)


def _detached(gm: GraphModule, value: Any) -> Any:
    if not has_tensor(value):
        return value
    made = gm.graph.call_function(aten.detach.default, (value,))
    made.meta = dict(value.meta)
    return made


def _copied(gm: GraphModule, body: Any, operands: Sequence[Any], outside: Sequence[Any]) -> Any:
    """Copies the nodes of a region to where the graph is being written; returns what the region returns.

    What it returns as it got it is the value `outside`: export gives a tensor that a cast hands through its last name.
    """
    inner: Any = gm.get_submodule(body.target)
    copies: dict[Node, Any] = {}
    entered: dict[Node, Any] = {}
    given = iter(zip(operands, outside, strict=True))
    for node in inner.graph.nodes:
        if node.op == "placeholder":
            copies[node], entered[node] = next(given)
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], lambda n: entered.get(_handed_through(n), copies[n]))
        elif node.op == "get_attr":
            copies[node] = _moved(gm, inner, node)
        else:
            copies[node] = gm.graph.node_copy(node, lambda n: copies[n])
    raise AssertionError("a region without an output")


def _handed_through(node: Node) -> Node:
    """The node whose very tensor this one gives: casts to what it is already, and copies that need none."""
    while node.target in CASTS | {aten.contiguous.default} and has_tensor(node.args[0]):
        source = node.args[0]
        assert isinstance(source, Node)
        if node.target in CASTS and not is_view(node):
            break
        if node.target is aten.contiguous.default and not tensor_of(source).is_contiguous():
            break
        node = source
    return node


def _moved(gm: GraphModule, inner: GraphModule, node: Node) -> Node:
    """What a region holds, held by the graph around it."""
    name = next(n for i in itertools.count() if not hasattr(gm, n := f"region_{i}"))
    setattr(gm, name, operator.attrgetter(str(node.target))(inner))
    made = gm.graph.get_attr(name)
    made.meta = dict(node.meta)
    return made
