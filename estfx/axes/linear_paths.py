"""What contractions lead into without anything but linear operators between, as the two halves of a low-rank map do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from estfx.graphs import arguments

__all__ = ["leading_into_stream", "linear_source"]

aten = torch.ops.aten
LINEAR = {  # in their first operand
    aten.to.dtype,
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.view.default,
    aten.reshape.default,
}


def leading_into_stream(contractions: Sequence[tuple[Node, str, bool]]) -> set[Node]:
    """Those of the contractions, in the order of the graph, that give the stream or lead linearly into ones that do.

    Each is given with the name of the operand that it sums over, and with whether it gives the stream's hidden size.
    """
    operands = {node: arguments(node).get(argument) for node, argument, _ in contractions}
    found: set[Node] = set()
    for node, _, gives_stream in reversed(contractions):
        if gives_stream or _leads_into(node, operands, found):
            found.add(node)
    return found


def _leads_into(node: Node, operands: dict[Node, object], found: set[Node]) -> bool:
    return bool(node.users) and all(
        (user in found and operands[user] is node) or (user.target in LINEAR and _leads_into(user, operands, found))
        for user in node.users
    )


def linear_source(node: Node) -> Node:
    """Where a value comes from but for what is linear in it."""
    while node.target in LINEAR:
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node
