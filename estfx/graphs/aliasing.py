"""Which values of a graph share memory, and which operators write into it."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from estfx.graphs.fx_graphs import arguments, has_tensor, tensor_of

__all__ = ["CASTS", "is_view", "memory_of", "writes"]

aten = torch.ops.aten
CASTS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default}
CHANGES_FLAGS = {aten.detach_.default, aten.requires_grad_.default}


def writes(node: Node) -> bool:
    """Whether it is an operator in place."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in CHANGES_FLAGS:
        return False
    return bool(node.target._schema.is_mutable)


def is_view(node: Node) -> bool:
    """Whether the node's value shares memory with that of another node."""
    if node.target is operator.getitem:
        return True
    if node.target in CASTS:
        before, after = tensor_of(node.args[0]), tensor_of(node)  # type: ignore[arg-type]
        return before.dtype == after.dtype and before.device == after.device
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def memory_of(node: Node) -> Node | None:
    """The node that made the memory which the node's value lies in; None if that is not known."""
    while is_view(node):
        source = _source(node)
        if not isinstance(source, Node):
            return None
        node = source
    return node if has_tensor(node) or isinstance(node.meta.get("val"), (list, tuple)) else None


def _source(view: Node) -> object:
    """The argument whose memory the value of a view lies in: the first one, or what an operator writes to (`out=`)."""
    if isinstance(view.target, torch._ops.OpOverload) and view.target not in CASTS:
        schema = view.target._schema
        given = next(result.alias_info.before_set for result in schema.returns if result.alias_info is not None)
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.before_set & given:
                return arguments(view)[argument.name]
    return view.args[0] if view.args else None
