"""Weights that are computed: from parameters alone, by a statistic or by an operator that no rule follows.

A norm of the weights, a spectral norm, an orthogonal basis: the kept part of such a weight is not what the kept part of
the parameters gives. It is computed whole, and its units are taken where it meets the stream.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from estfx.graphs import has_tensor, memory_of, nodes_within, tags, tensor_of, writes

__all__ = ["WholeWeights", "whole_weights"]


@dataclass(frozen=True)
class WholeWeights:
    computed: frozenset[Node]  # all that is computed whole
    born: frozenset[Node]  # of it, the values that something else reads: their axes begin there


def whole_weights(gm: GraphModule, interface: tags.Interface, follows: Callable[[Node], bool]) -> WholeWeights:
    """What depends on weights alone, from the first operator on for which no rule says which part gives which."""
    names = {name for name, _ in interface.weights}
    weights: set[Node] = set()
    computed: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            if (node.op == "get_attr" or node.name in names) and has_tensor(node):
                weights.add(node)
            continue
        sources = [n for n in nodes_within((node.args, node.kwargs)) if _is_tensor(n)]
        if node.op != "call_function" or not sources or any(n not in weights for n in sources):
            continue
        weights.add(node)
        if any(n in computed for n in sources) or (_is_fixed(node, sources) and not follows(node)):
            computed.add(node)
    written = {memory_of(node) for node in gm.graph.nodes if writes(node)}
    born = {
        node
        for node in computed
        if has_tensor(node) and memory_of(node) not in written and any(user not in computed for user in node.users)
    }
    return WholeWeights(frozenset(computed), frozenset(born))


def _is_tensor(node: Node) -> bool:
    return has_tensor(node) or isinstance(node.meta.get("val"), (list, tuple))


def _is_fixed(node: Node, sources: list[Node]) -> bool:
    """Whether no size in it depends on the batch or its length, as those of a mask do."""
    tensors = [tensor_of(n) for n in (node, *sources) if has_tensor(n)]
    fixed = all(isinstance(size, int) or size.node.expr.is_number for tensor in tensors for size in tensor.shape)
    return fixed and node.target is not operator.getitem and isinstance(node.target, torch._ops.OpOverload)
