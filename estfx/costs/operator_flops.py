"""What each node of a graph costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from estfx.costs.flops import flop_counter
from estfx.graphs import has_tensor, tensor_of

__all__ = ["LENGTH", "node_flops"]

LENGTH = 128  # tokens


def node_flops(gm: GraphModule, inputs: Sequence[torch.Tensor] | None = None) -> dict[str, int]:
    """The forward FLOPs of every node that has some, for such inputs (a layer graph's stream and sides); without them
    for a batch of one sequence of LENGTH tokens.
    """
    sizes: dict[Any, int] = {}
    given = iter(inputs or ())
    for node in gm.graph.nodes:
        if node.op == "placeholder" and has_tensor(node):
            like = next(given, None)
            for dim, size in enumerate(tensor_of(node).shape):
                if isinstance(size, torch.SymInt):
                    if like is not None and size.node.expr.is_Symbol:
                        sizes[size.node.expr] = like.shape[dim]
                    for symbol in sorted(size.node.expr.free_symbols, key=str):
                        sizes.setdefault(symbol, LENGTH if sizes else 1)  # the stream's batch comes first
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and has_tensor(node):
            flops = _flops(node, sizes)
            if flops:
                found[node.name] = flops
    return found


def _flops(node: Node, sizes: dict[Any, int]) -> int:
    def given(value: Any) -> Any:
        value = value.meta.get("val") if isinstance(value, Node) else value
        if isinstance(value, torch.SymInt):
            return int(value.node.expr.subs(sizes))
        if isinstance(value, torch.Tensor):
            return torch.empty([given(size) for size in value.shape], dtype=value.dtype, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    def is_leaf(value: Any) -> bool:
        return isinstance(value, Node)

    try:
        args, kwargs = pytree.tree_map(given, (tuple(node.args), dict(node.kwargs)), is_leaf=is_leaf)
        with torch.no_grad(), flop_counter() as counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # an operator that runs on no meta tensors, or whose sizes are not those of the example
        return 0
    return int(counter.get_total_flops())
