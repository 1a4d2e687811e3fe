"""Finds the residual branches of a layer, and whether the layer may be passed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import torch
from torch.fx import GraphModule, Node

from estfx.graphs import Analysis, describe, has_tensor, memory_of, tags, tensor_of, writes

aten = torch.ops.aten
ADD = {aten.add.Tensor, aten.add_.Tensor}
IDENTITIES = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
}
RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
SCALINGS = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}
NORMS = {aten.layer_norm.default, aten.rms_norm.default}
AFFINE = {*SCALINGS, *ADD, aten.sub.Tensor}


@dataclass(frozen=True)
class FindResiduals(Analysis):
    """`out = skip + branch`, where `skip` is the fork and `branch` is computed from it: that `add` is a join.

    before                                      after, in the tag
        %n = layer_norm(%x, …)
        %f = linear(%n, …)
        %a = add(%x, %f)                            a = x + f
        %d = dropout(%a, 0.1)
        %g = gelu(%d)
        %o = add(%g, %d)                            o = d + g, and d leads back to a
        return %o                                   droppable: o, d, a, x

    The fork is the last value through which everything that flows from the stream into the `add` must pass, its
    immediate dominator. One operand must lead back to it through nothing but identities (dtype, dropout, a constant
    factor), norms of the stream itself (post-norm layers), and other joins. A norm is one operator, or what multiplies
    and shifts the stream by weights and by one number a position. A layer whose output leads back to its stream in this
    way may be passed over; `reason` says why another may not. A layer whose output is only ever added to a tensor is a
    branch whose join lies outside of it: passed over, it gives zeros. What it leaves somewhere beside its result is
    then zeros as well, if that is made of units that close, as the state of a recurrence is.
    """

    needs: ClassVar = (tags.Axes, tags.Interface)
    puts: ClassVar = (tags.Residuals,)

    def run(self, gm: GraphModule) -> int:
        interface = tags.get(gm, tags.Interface)
        stream = next(n for n in gm.graph.nodes if n.name == interface.stream)
        flow = _flow(gm, stream)
        dominators = nx.immediate_dominators(flow, stream)
        found: dict[Node, tags.Join] = {}
        outputs: Any = gm.graph.output_node().args[0]
        stop = _walk_back(outputs[0], stream, flow, dominators, found)
        joins = tuple(found[n] for n in gm.graph.nodes if n in found)
        outside = interface.added and (stop is not stream or not joins)
        reason = "" if outside else _why_not_passed_over(stream, stop, joins)
        others = [i for i in range(1, interface.outputs) if i not in interface.left]
        if not reason and others:
            reason = "something outside reads another output of it than the stream"
        elif not reason:
            axes = tags.get(gm, tags.Axes)
            kept = [outputs[i] for i in interface.left if not _becomes_zeros(outputs[i], stream, axes)]
            reason = f"it leaves {describe(kept[0])} beside its result" if kept else ""
        tags.put(gm, tags.Residuals(joins, droppable=not reason, reason=reason, outside=outside))
        return len(joins)


def _becomes_zeros(value: Node, stream: Node, axes: tags.Axes) -> bool:
    """Whether a value that the layer leaves is one of units, and of a shape that can be told by the stream alone."""
    closes = [axis for dim in axes.dims[value.name] for axis in dim.axes() if not axes.obstacle(axis, inner=True)]
    known = {str(size) for size in tensor_of(stream).shape}
    return bool(closes) and all(isinstance(size, int) or str(size) in known for size in tensor_of(value).shape)


def _why_not_passed_over(stream: Node, stop: Node, joins: tuple[tags.Join, ...]) -> str:
    """Of a layer whose output was followed back to `stop`; empty if that is its stream, with a join on the way."""
    if stop is not stream and tensor_of(stream).ndim > 3:
        return f"it mixes several residual streams into each other: none is passed on ({describe(stop)})"
    if stop is not stream:
        return (
            "its output is not x + f(x) of its input x: the skip connection, followed back from the output, ends at "
            f"{describe(stop)} instead of at x"
        )
    return "" if joins else "it has no residual join: its output is its stream, scaled at most"


def _flow(gm: GraphModule, stream: Node) -> nx.DiGraph[Node]:
    """The part of the graph that depends on the stream, an edge for each use, and for each use of what was written."""
    flow: nx.DiGraph[Node] = nx.DiGraph()
    flow.add_node(stream)
    written: dict[Node | None, list[Node]] = {}  # by memory, what wrote to it
    for node in gm.graph.nodes:
        if not has_tensor(node) and not isinstance(node.meta.get("val"), (list, tuple)):
            continue
        for source in node.all_input_nodes:
            reached = [source, *written.get(memory_of(source), ())]
            flow.add_edges_from((each, node) for each in reached if each in flow and each is not node)
        if writes(node) and node in flow:
            written.setdefault(memory_of(node), []).append(node)
    return flow


def _identity_source(node: Node) -> Node | None:
    """What the node passes on unchanged but for dtype, dropout, shape or a constant factor."""
    if node.op != "call_function" or not node.args or not has_tensor(node.args[0]):
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    if node.target in IDENTITIES:
        return source
    if node.target in RESHAPES and tensor_of(source).shape[-1] == tensor_of(node).shape[-1]:
        return source
    if node.target in SCALINGS and not has_tensor(node.args[1]):
        return source
    return None


def _norm_source(node: Node, flow: nx.DiGraph[Node]) -> Node | None:
    """What the node gives normalised, scaled or shifted, the same for each position or by one number for each."""
    if node.target in NORMS:
        source = node.args[0]
        assert isinstance(source, Node)
        return source if source in flow else None
    operands = [n for n in node.args[:2] if has_tensor(n)]
    if node.target not in AFFINE or node not in flow:
        return None
    whole = [n for n in operands if n in flow and str(tensor_of(n).shape) == str(tensor_of(node).shape)]  # type: ignore[arg-type]
    if len(whole) != 1:
        return None
    others = [n for n in operands if n is not whole[0]]
    passes = all(n not in flow or tensor_of(n).shape[-1:] == (1,) for n in others)  # type: ignore[arg-type]
    return whole[0] if passes else None  # type: ignore[return-value]


def _passes_on(node: Node, fork: Node) -> bool:
    """Whether identities alone lead back from the node to the fork."""
    while node is not fork:
        if (source := _identity_source(node)) is None:
            return False
        node = source
    return True


def _walk_back(
    node: Node, stream: Node, flow: nx.DiGraph[Node], dominators: dict[Node, Node], found: dict[Node, tags.Join]
) -> Node:
    """Follows identities and joins from `node` towards the stream, noting the joins; returns where it had to stop."""
    while node is not stream:
        source = _identity_source(node) or _norm_source(node, flow)
        if source is not None:
            node = source
            continue
        if node.target not in ADD or node not in flow:
            return node
        operands = [n for n in node.args[:2] if isinstance(n, Node) and has_tensor(n)]
        if len(operands) != 2 or not all(n in flow for n in operands):
            return node
        fork = dominators[node]
        if all(_passes_on(operand, fork) for operand in operands):  # x + x has no branch: it is 2 · x
            node = fork
            continue
        trials = []
        pairs = sorted(
            (operands, operands[::-1]), key=lambda pair: not _passes_on(pair[0], fork)
        )  # the fork itself first
        for skip, branch in pairs:
            inner: dict[Node, tags.Join] = {}
            if _leads_back(skip, fork, flow, dominators, inner):
                trials.append((skip, branch, inner))
        if not trials:
            return node
        skip, branch, inner = trials[0]
        between = (nx.descendants(flow, fork) & nx.ancestors(flow, branch)) | {branch}  # type: ignore[arg-type]
        found[node] = tags.Join(node.name, fork.name, skip.name, branch.name, frozenset(n.name for n in between))
        found.update(inner)
        node = fork
    return node


def _leads_back(
    node: Node, fork: Node, flow: nx.DiGraph[Node], dominators: dict[Node, Node], inner: dict[Node, tags.Join]
) -> bool:
    while node is not fork:
        source = _identity_source(node) or _norm_source(node, flow)
        if source is not None:
            node = source
        elif node.target in ADD and node in flow:
            stop = _walk_back(node, fork, flow, dominators, inner)
            if stop is node:
                return False
            node = stop
        else:
            return False
    return True
