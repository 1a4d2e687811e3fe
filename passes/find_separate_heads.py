"""Finds attention heads that are modules of their own, called one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from estfx.graphs import Analysis, has_tensor, tags, tensor_of
from estfx.passes.find_attention import FUSED, SOFTMAX

aten = torch.ops.aten
JOINS = {aten.cat.default, aten.concat.default, aten.concatenate.default, aten.stack.default}
Column = tuple[Node, ...]  # the same value of each branch


@dataclass(frozen=True)
class FindSeparateHeads(Analysis):
    """`cat([attend(x; w_1), …, attend(x; w_h)])`: branches that differ in their weights alone are h heads.

    before                                          after, in the tag
        %q = linear(%x, %heads_0_q)
        %o = attention(%q, …)
        %q_1 = linear(%x, %heads_1_q)
        %o_1 = attention(%q_1, …)
        %c = cat([%o, %o_1], -1)                    branches [q, o] and [q_1, o_1]; weights [heads_0_q, heads_1_q]

    Each branch computes the same, of the same values, with a core of attention in it, and nothing else reads what is in
    it. FindAxes makes one axis of them; where it is narrowed, fewer branches run, on the weights of the kept ones.
    """

    needs: ClassVar = (tags.Interface,)
    puts: ClassVar = (tags.SeparateHeads,)

    def run(self, gm: GraphModule) -> int:
        weights = {name for name, _ in tags.get(gm, tags.Interface).weights}
        found = [each for node in gm.graph.nodes if node.target in JOINS and (each := _branches(node, weights))]
        tags.put(gm, tags.SeparateHeads(tuple(found)))
        return len(found)


def _branches(join: Node, weights: set[str]) -> tags.Branches | None:
    parts: Any = join.args[0]
    if len(parts) < 2 or not all(map(has_tensor, parts)):
        return None
    match = _Match(weights)
    if not match.alike(tuple(parts)) or not any(column[0].target in FUSED | SOFTMAX for column in match.columns):
        return None
    branches = [{column[i] for column in match.columns} for i in range(len(parts))]
    if not all(user in branch or user is join for branch in branches for node in branch for user in node.users):
        return None
    order = {node: i for i, node in enumerate(join.graph.nodes)}
    return tags.Branches(
        join.name,
        tuple(tuple(node.name for node in sorted(branch, key=order.__getitem__)) for branch in branches),
        tuple(tuple(node.name for node in column) for column in match.leaves),
    )


@dataclass
class _Match:
    """Goes back from the ends of all branches at once, as long as they do the same."""

    weights: set[str]
    columns: dict[Column, None] = field(default_factory=dict)  # what the branches compute
    leaves: dict[Column, None] = field(default_factory=dict)  # weights and constants, one of each branch

    def alike(self, ends: Column) -> bool:
        todo = [ends]
        while todo:
            column = todo.pop()
            if column in self.columns or column in self.leaves or len(set(column)) == 1:
                continue
            first = column[0]
            if len(set(column)) < len(column) or any(node.op != first.op for node in column):
                return False
            if first.op in ("placeholder", "get_attr"):
                if not self._is_leaf(column):
                    return False
                continue
            if first.op != "call_function" or any(node.target is not first.target for node in column):
                return False
            self.columns[column] = None
            given = [pytree.tree_flatten((node.args, node.kwargs)) for node in column]
            if any(spec != given[0][1] for _, spec in given):
                return False
            for values in zip(*(leaves for leaves, _ in given), strict=True):
                if all(isinstance(value, Node) for value in values):
                    todo.append(values)
                elif any(type(value) is not type(values[0]) or value != values[0] for value in values):
                    return False
        return True

    def _is_leaf(self, column: Column) -> bool:
        """Weights or constants of one shape, of which some may be taken."""
        if not all(has_tensor(n) and (n.op == "get_attr" or n.name in self.weights) for n in column):
            return False
        kinds = {(tuple(tensor_of(n).shape), tensor_of(n).dtype, tensor_of(n).device) for n in column}
        if len(kinds) == 1:
            self.leaves[column] = None
        return len(kinds) == 1
