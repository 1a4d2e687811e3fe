"""One walk over a layer graph, in which every operator says how its dimensions hang together.

A rule is a function registered for an operator: it is given the walk, the node and the node's arguments, unifies
dimensions, and returns those of the result. A resizer, registered beside it, computes again the sizes that stand in
the operator's arguments once axes are narrower. An operator without a rule pins everything that it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from estfx.axes.algebra import Algebra, Ref
from estfx.axes.linear_paths import leading_into_stream
from estfx.axes.resize import Resize
from estfx.axes.rule_tables import (
    FACTORIES,
    RESIZERS,
    RULES,
    STATISTICS,
    Arguments,
    Dims,
    check_result,
    entry,
    resizer,
    rule,
)
from estfx.axes.whole_weights import whole_weights
from estfx.graphs import (
    Axis,
    Dim,
    arguments,
    describe,
    has_tensor,
    is_own_function,
    is_pointwise_function,
    memory_of,
    nodes_within,
    opaque_module_of,
    sizes,
    tags,
    tensor_of,
    writes,
)

__all__ = ["FACTORIES", "RESIZERS", "RULES", "Arguments", "Dims", "Resize", "Walk", "entry", "resizer", "rule"]


@dataclass
class _Closing:
    node: Node
    argument: str
    position: int
    ref: Ref
    others: Dims  # what the other operand adds to the result


class Walk:
    """Dimensions of every value in a graph, while they are being found out."""

    def __init__(self, gm: GraphModule, interface: tags.Interface) -> None:
        self.gm = gm
        self.interface = interface
        self.algebra = Algebra()
        self.dims: dict[Node, Dims | list[Dims]] = {}
        self.closings: list[_Closing] = []
        self.couplings: list[tuple[Ref, Node]] = []
        self.carriers: set[Node] = set()  # of numbers from the stream; what only depends on positions is none
        self.mixing: list[tuple[Node, Ref | None, Dims]] = []
        self.whole = whole_weights(gm, interface, _is_followed)
        heads = tags.get(gm, tags.SeparateHeads, tags.SeparateHeads())
        self.joins_of_heads = frozenset(each.join for each in heads.found)  # what puts separate heads side by side

    # -- for rules --------------------------------------------------------------------------------

    def of(self, node: Node) -> Dims:
        """The dimensions of a value."""
        dims = self.dims[node]
        assert isinstance(dims, tuple), f"{node} is a list of tensors"
        return dims

    def fresh(self, size: int | torch.SymInt) -> Ref:
        """A dimension that comes from nowhere else."""
        return self.algebra.fresh(size)

    def fresh_like(self, node: Node, value: torch.Tensor | None = None) -> Dims:
        """Such dimensions, as many as the node's value has and of their sizes."""
        return tuple(self.fresh(size) for size in (tensor_of(node) if value is None else value).shape)

    def unify(self, node: Node, a: Ref, b: Ref) -> None:
        """`a` and `b` are the same dimension, unit by unit; where that cannot be, both stay whole."""
        if not self.algebra.unify(a, b):
            self.pin(f"dimensions do not line up at {describe(node)}", a, b)

    def pin(self, reason: str, *refs: Ref) -> None:
        """These dimensions stay whole, and why."""
        for ref in refs:
            self.algebra.pin(ref, reason)

    def pin_all(self, node: Node, reason: str) -> Dims | list[Dims]:
        """Everything that the node reads and gives stays whole."""
        for source in nodes_within((node.args, node.kwargs)):
            dims = self.dims.get(source, ())
            for each in dims if isinstance(dims, list) else [dims]:
                self.pin(reason, *each)
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            result = [self.fresh_like(node, v) if isinstance(v, torch.Tensor) else () for v in value]
            for each in result:
                self.pin(reason, *each)
            return result
        fresh = self.fresh_like(node) if has_tensor(node) else ()
        self.pin(reason, *fresh)
        return fresh

    def align(self, node: Node, operands: Sequence[Node], shape: Sequence[int]) -> Dims:
        """Broadcasting: dimensions are aligned at the right and unified where they are not 1."""
        result: list[Ref | None] = [None] * len(shape)
        for source in operands:
            dims = self.of(source)
            for back, ref in enumerate(reversed(dims), start=1):
                if back > len(shape) or self.algebra.size(ref) != shape[-back]:
                    continue  # of size 1 where the result is not
                if result[-back] is None:
                    result[-back] = ref
                elif shape[-back] != 1:
                    self.unify(node, result[-back], ref)  # type: ignore[arg-type]
        fresh = self.fresh_like(node) if has_tensor(node) and len(shape) == tensor_of(node).ndim else None
        return tuple(
            ref if ref is not None else (fresh[i] if fresh else self.fresh(shape[i])) for i, ref in enumerate(result)
        )

    def regroup(self, node: Node, before: Iterable[Ref], after: Iterable[Ref]) -> None:
        """The same elements in the same order, seen with other sizes."""
        before, after = tuple(before), tuple(after)
        if not self.algebra.unify(self.algebra.product(before), self.algebra.product(after)):
            self.pin(f"sizes do not split at {describe(node)}", *before, *after)

    def cut(self, node: Node, ref: Ref, parts: Sequence[int]) -> list[Ref]:
        """The parts of these sizes, in order, that a dimension is made of."""
        found = self.algebra.cut(ref, parts)
        if found is None:
            self.pin(reason := f"cut through the middle of a unit at {describe(node)}", ref)
            found = [self.fresh(part) for part in parts]
            self.pin(reason, *found)
        return found

    def close(self, node: Node, argument: str, position: int, ref: Ref, others: Dims) -> None:
        """`node` sums over dimension `position`, which is `ref`, of its operand called `argument`."""
        self.closings.append(_Closing(node, argument, position, ref, others))

    def couple(self, node: Node, *refs: Ref) -> None:
        """`node` takes a statistic over these dimensions."""
        self.couplings.extend((ref, node) for ref in refs)

    def mix(self, node: Node, over: Ref | None = None, aligned: Dims = ()) -> None:
        """`node` brings positions of the sequence together.

        With `over`, only if that dimension counts positions; not if all positions are among the dimensions `aligned`,
        in which the operands are taken one by one.
        """
        self.mixing.append((node, over, aligned))

    # -- the walk ---------------------------------------------------------------------------------

    def run(self) -> tags.Axes:
        stream = next(n for n in self.gm.graph.nodes if n.name == self.interface.stream)
        for node in self.gm.graph.nodes:
            if node.op == "output":
                continue
            if node is stream or (_has_numbers(node) and any(n in self.carriers for n in node.all_input_nodes)):
                self.carriers.add(node)
            self.dims[node] = self._visit(node)
        outputs: Sequence[Node] = self.gm.graph.output_node().args[0]  # type: ignore[assignment]
        for mine, given in zip(self.of(stream), self.of(outputs[0]), strict=True):
            self.unify(stream, mine, given)  # without a residual connection of its own, no operator does
        self.pin("it is a dimension of the residual stream", *self.of(stream))
        for i, value in enumerate(outputs):
            if i not in self.interface.left:  # there, zeros take the place of the units that do not run
                self.pin("it leaves the layer", *self.of(value))
        return self._result(stream)

    def _visit(self, node: Node) -> Dims | list[Dims]:
        if node.op in ("placeholder", "get_attr"):
            return self.fresh_like(node) if has_tensor(node) else ()  # the body of a loop or a branch has no shape
        if writes(node) and not self._written(node):
            return self.pin_all(node, f"a value is changed in place at {describe(node)}")
        if node in self.whole.computed:
            dims = self.pin_all(node, f"a weight is computed of the whole at {describe(node)}")
            return self.fresh_like(node) if node in self.whole.born else dims
        if node.target is operator.getitem:
            dims = self.dims[node.args[0]]  # type: ignore[index]
            return dims[node.args[1]] if isinstance(dims, list) else ()  # type: ignore[index]
        if (opaque := opaque_module_of(node.target)) is not None:
            return self.pin_all(node, f"`{opaque.path}`, which reads or gives it, runs as it is")
        found = entry(RULES, node.target)
        if not has_tensor(node) and not isinstance(node.meta.get("val"), (list, tuple)):
            return ()  # a size
        if is_own_function(node.target) and not is_pointwise_function(node.target):
            return self.pin_all(node, f"a function with a gradient of its own at {describe(node)}")
        if is_own_function(node.target):
            operands = [n for n in nodes_within((node.args, node.kwargs)) if has_tensor(n)]
            return self.align(node, operands, sizes(node))
        if found is None and has_tensor(node) and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            found = RULES[torch.ops.aten.add.Tensor]
        if found is None:
            return self.pin_all(node, f"no rule for the operator at {describe(node)}")
        try:
            dims = found(self, node, arguments(node))
        except Exception as error:
            error.add_note(f"in the rule `{found.__name__}` of {found.__module__} for {describe(node)}")
            raise
        check_result(self.algebra, node, found, dims)
        return dims

    def _written(self, node: Node) -> bool:
        """Notes what an operator in place writes to; False unless that is a value of the graph's own."""
        base = memory_of(node)
        if base is None or base.op != "call_function":
            return False
        if node in self.carriers:
            self.carriers.add(base)
        return True

    def _result(self, stream: Node) -> tags.Axes:
        resolve = self.algebra.resolve
        cache: dict[Ref, Dim] = {}

        def dim(ref: Ref) -> Dim:
            ref = self.algebra.find(ref)
            if ref not in cache:
                cache[ref] = resolve(ref)
            return cache[ref]

        hidden = set(dim(self.of(stream)[-1]).axes())
        positions = {axis for ref in self.of(stream)[:-1] for axis in dim(ref).axes()}
        ends = [
            (c.node, c.argument, all(axis in hidden for ref in c.others for axis in dim(ref).axes()))
            for c in self.closings
            if c.others
        ]
        to_stream = leading_into_stream(ends)
        coupled: dict[Axis, dict[str, None]] = {}
        for ref, node in self.couplings:
            for axis in dim(ref).axes():
                coupled.setdefault(axis, {})[node.name] = None
        return tags.Axes(
            dims={n.name: tuple(map(dim, d)) for n, d in self.dims.items() if isinstance(d, tuple) and has_tensor(n)},
            pins=self.algebra.pins(),
            closings=tuple(
                tags.Closing(
                    c.node.name,
                    c.argument,
                    c.position,
                    dim(c.ref),
                    c.node in to_stream,
                )
                for c in self.closings
            ),
            coupled={axis: tuple(names) for axis, names in coupled.items()},
            mixing=frozenset(
                node.name
                for node, over, aligned in self.mixing
                if (over is None or positions.intersection(dim(over).axes()))
                and not positions <= {axis for ref in aligned for axis in dim(ref).axes()}
            ),
            born=frozenset(node.name for node in self.whole.born),
        )


def _is_followed(node: Node) -> bool:
    """Whether the result for a part of the operands is a part of the result, and a rule says which."""
    if writes(node) or node.target in STATISTICS:
        return False
    return entry(RULES, node.target) is not None or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _has_numbers(node: Node) -> bool:
    """Whether the value is one of real or complex numbers, or a list with one in it."""
    value = node.meta.get("val")
    tensors = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, torch.Tensor)]
    return any(v.is_floating_point() or v.is_complex() for v in tensors)
