"""Regions of an exported graph that run under another grad mode or autocast state than the rest of it.

torch.export keeps each as one call of a graph of its own, into which no rule looks. Here they are put back in line
where that computes the same: what was made without gradients is detached when it leaves its region.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from estfx.errors import TraceError
from estfx.graphs import describe, tensor_of, writes

__all__ = ["inline_regions"]

aten = torch.ops.aten
GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast
SAME = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.contiguous.default}


def inline_regions(gm: GraphModule) -> None:
    """Puts every region in line, in place. Raises TraceError for one of which the same cannot be computed so."""
    for node in list(gm.graph.nodes):
        regions = [x for x in node.all_input_nodes if x.op == "get_attr" and _is_graph(gm, x)]
        if regions:
            _inline(gm, node, regions[0])
            for region in regions:
                if not region.users:
                    gm.graph.erase_node(region)


def _is_graph(gm: GraphModule, node: Node) -> bool:
    return isinstance(getattr(gm, str(node.target), None), GraphModule)


def _inline(gm: GraphModule, node: Node, region: Node) -> None:
    inner: GraphModule = getattr(gm, str(region.target))
    detached = _is_without_gradients(node)
    for part in inner.graph.nodes:
        if part.op == "get_attr":
            raise TraceError(f"{describe(node)} holds a region or a constant of its own, which estfx does not follow")
        if detached and writes(part):
            raise TraceError(f"{describe(part)} writes in place where gradients are off, which estfx does not follow")
    given = iter(node.args[node.args.index(region) + 1 :])
    copies: dict[Node, Any] = {}
    outputs: Any = ()
    with gm.graph.inserting_before(node):
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                copies[part] = next(given)
            elif part.op == "output":
                outputs = part.args[0]
            else:
                copies[part] = gm.graph.node_copy(part, lambda n: copies[n])
        values: list[Any] = []
        for out in outputs:
            value = copies.get(out)
            if detached and isinstance(value, Node) and not _is_given(out):
                value = gm.graph.call_function(aten.detach.default, (copies[out],))
                value.meta = dict(copies[out].meta)
            values.append(value)
    for user in list(node.users):
        position: Any = user.args[1]
        user.replace_all_uses_with(values[position])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _is_without_gradients(node: Node) -> bool:
    """Whether the region's values have no gradient. Raises TraceError for a region that cannot stand in line."""
    if node.target is GRAD:
        return not node.args[0]
    if node.target is AUTOCAST:
        device_type, _, enabled = node.args[:3]
        if not enabled and not torch.is_autocast_enabled(str(device_type)):
            return False
        raise TraceError(
            "part of it runs under another autocast state than the rest, which one graph cannot do. Train it without "
            "autocast, with weights in the dtype wanted"
        )
    raise TraceError(f"it calls {node.target}, an operator over a graph of its own, which estfx does not follow")


def _is_given(out: Node) -> bool:
    """Whether an output of a region is one of its inputs, as it is; then its gradient goes on."""
    while out.target in SAME:
        source = out.args[0]
        assert isinstance(source, Node)
        if tensor_of(source).dtype != tensor_of(out).dtype or tensor_of(source).device != tensor_of(out).device:
            return False
        out = source
    return out.op == "placeholder"
