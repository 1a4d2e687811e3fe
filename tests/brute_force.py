"""Compares what a rule says of an operator with what the operator does.

A row holds a function of tensors that calls ATen overloads by name, and the dimensions that the walk is to find:

    a b·c, Σd !e -> (a+~b)·c 1      products, sums, and `1` for a size of 1
    !a   pinned                     ~a   coupled: a statistic is taken over it
    Σa   closed: a contraction sums over it

Every axis that is not pinned is then narrowed to random units of it: the inputs are taken at those units, the
operators run with the sizes that their resizers compute, and every value must be the original one at those units.

A function may write into memory that it made itself: what stood there before is kept for every input and every tensor
that is born in it, so that a write which is missing, or goes elsewhere, shows.
"""

from __future__ import annotations

import operator
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode

from estfx.axes import rules
from estfx.axes.walk import FACTORIES, RESIZERS, RULES, Resize, Walk
from estfx.graphs import tags
from estfx.graphs.dimensions import Axis, Dim, Product, Sum
from estfx.graphs.fx_graphs import arguments, has_tensor

STREAM = "stream"
UNFILLED = {torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default}  # what stands there is anything
Units = Mapping[Axis, np.ndarray]
Values = dict[Node, Any]


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """An input of random whole numbers below `high`."""

    shape: tuple[int, ...]
    high: int


@dataclass(frozen=True)
class Mask:
    """An input of random booleans."""

    shape: tuple[int, ...]


Input = tuple[int, ...] | Positions | Mask | torch.Tensor  # the shape of random numbers; or the tensor itself


@dataclass(frozen=True)
class Row:
    op: OpOverload
    function: Callable[..., Any]
    inputs: Sequence[Input]
    dims: str
    compare: str = "exact"  # or "close", where the arithmetic depends on the shape; or "shape", where values are random

    def __str__(self) -> str:
        return f"{str(self.op).removeprefix('aten.')}: {self.dims}"


def rules_of(family: Any) -> set[object]:
    """The operators whose rules stand in that file."""
    return {_overload(op) for op, rule in RULES.items() if rule.__module__ == family.__name__}


def _overload(operator: object) -> object:
    """A rule may be registered by the name of an operator that is defined later."""
    if not isinstance(operator, str):
        return operator
    namespace, name = operator.split("::")
    return getattr(getattr(torch.ops, namespace), name).default


def tables() -> set[str]:
    """The files of rules."""
    return {f"estfx.axes.rules.{module.name}" for module in pkgutil.iter_modules(rules.__path__)}


# -- from a function to a graph ----------------------------------------------------------------------------------------


@dataclass
class Recorded:
    gm: GraphModule
    inputs: list[Node]
    outputs: list[Node]
    values: Values
    born: Values  # what inputs and factories gave, before anything was written into it


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.nodes: dict[int, Node] = {}
        self.values: Values = {}
        self.born: Values = {}

    def add(self, node: Node, value: Any) -> Node:
        node.meta["val"] = value
        self.values[node] = value
        if node.op == "placeholder" or node.target in FACTORIES:
            if node.target in UNFILLED:
                value.copy_(torch.arange(value.numel()).reshape(value.shape) + 1000)
            self.born[node] = value.clone()
        if isinstance(value, torch.Tensor):
            self.nodes[id(value)] = node
        else:
            for i, part in enumerate(value):
                self.add(self.graph.call_function(operator.getitem, (node, i)), part)
        return node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if isinstance(func, OpOverload):
            replaced = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: self.nodes[id(t)], (args, kwargs))
            self.add(self.graph.call_function(func, *replaced), value)
        return value


def record(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Recorded:
    """The function as a graph of the overloads that it calls, with a residual stream that it does not touch."""
    recorder = _Recorder()
    stream = recorder.add(recorder.graph.placeholder(STREAM), torch.zeros(1))
    nodes = [recorder.add(recorder.graph.placeholder(f"x{i}"), x) for i, x in enumerate(inputs)]
    with recorder:
        results = function(*inputs)
    recorder.graph.output((stream,))
    outputs = [recorder.nodes[id(r)] for r in ([results] if isinstance(results, torch.Tensor) else results)]
    return Recorded(GraphModule({}, recorder.graph), nodes, outputs, recorder.values, recorder.born)


def make_inputs(inputs: Sequence[Input], rng: np.random.Generator) -> list[torch.Tensor]:
    """All elements differ, and are multiples of 1/32, so that sums of their products are exact in any order."""
    made = []
    for given in inputs:
        match given:
            case Positions(shape, high):
                made.append(torch.from_numpy(rng.integers(high, size=shape)))
            case torch.Tensor():
                made.append(given)
            case Mask(shape):
                made.append(torch.from_numpy(rng.random(shape) < 0.5))
            case shape:
                count = int(np.prod(shape))
                made.append(torch.from_numpy((rng.permutation(count) - count // 2 + 0.5) / 16).reshape(shape))
    return made


def walk(recorded: Recorded) -> tags.Axes:
    return Walk(recorded.gm, tags.Interface(STREAM, (), ())).run()


# -- dimensions in letters ---------------------------------------------------------------------------------------------


def in_letters(axes: tags.Axes, recorded: Recorded) -> str:
    closed = {axis for closing in axes.closings for axis in closing.dim.axes()}
    letters: dict[Axis, str] = {}

    def text(dim: Dim, inside: bool = False) -> str:
        match dim:
            case Sum(terms):
                whole = "+".join(text(term) for term in terms)
                return f"({whole})" if inside else whole
            case Product(factors):
                return "·".join(text(factor, inside=True) for factor in factors)
            case Axis(size=size) if size < 2:
                return str(size)
            case axis:
                letter = letters.setdefault(axis, "abcdefghijklmnopqrstuvwxyz"[len(letters)])
                return "!" * (axis in axes.pins) + "~" * (axis in axes.coupled) + "Σ" * (axis in closed) + letter

    def shape(node: Node) -> str:
        return " ".join(map(text, axes.dims[node.name])) or "()"

    inputs, outputs = (", ".join(map(shape, nodes)) for nodes in (recorded.inputs, recorded.outputs))
    return f"{inputs} -> {outputs}"


# -- brute force -------------------------------------------------------------------------------------------------------


def taken(value: torch.Tensor, dims: Sequence[Dim], units: Units) -> torch.Tensor:
    value = value.clone()  # which may be written into
    for position, dim in enumerate(dims):
        value = value.index_select(position, torch.from_numpy(dim.flat_index(units)))
    return value


def _call(target: Any, a: Mapping[str, Any], values: Values) -> Any:
    a = torch.fx.map_arg(dict(a), values.__getitem__)
    schema = target._schema.arguments
    args = [a[x.name] for x in schema if not x.kwarg_only]
    return target(*args, **{x.name: a[x.name] for x in schema if x.kwarg_only})


def _narrowed(recorded: Recorded, axes: tags.Axes, units: Units, resized: set[object]) -> Values:
    """The graph run on the units alone."""
    values: Values = {}
    resize = Resize(axes, {axis: len(chosen) for axis, chosen in units.items()}, lambda old, dim: old)
    for node in recorded.gm.graph.nodes:
        if node.op == "placeholder" or node.target in FACTORIES:
            values[node] = taken(recorded.born[node], axes.dims[node.name], units)
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "call_function":
            target, a = node.target, arguments(node)
            if target in RESIZERS:
                new = dict(RESIZERS[target](resize, node, a))
                if node.target is not target or any(new[name] != a[name] for name in new):
                    resized.add(target)
                a = {**a, **new} if new.keys() <= a.keys() else new
            values[node] = _call(node.target, a, values)
            node.target = target
    return values


def _masked(recorded: Recorded, axes: tags.Axes, units: Units) -> Values:
    """The whole graph run with all but the units zeroed where a contraction sums over them."""
    closings: dict[str, list[tags.Closing]] = {}
    for closing in axes.closings:
        if any(axis in units for axis in closing.dim.axes()):
            closings.setdefault(closing.node, []).append(closing)
    if not closings:
        return recorded.values
    values: Values = {}
    for node in recorded.gm.graph.nodes:
        if node.op == "placeholder" or node.target in FACTORIES:
            values[node] = recorded.born[node].clone()
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "call_function":
            a = dict(torch.fx.map_arg(arguments(node), values.__getitem__))
            for closing in closings.get(node.name, ()):
                name, item = re.fullmatch(r"(\w+?)(?:\[(\d+)\])?", closing.argument).groups()  # type: ignore[union-attr]
                if item is None:
                    a[name] = _zeroed(a[name], closing, units)
                else:
                    a[name] = [_zeroed(t, closing, units) if i == int(item) else t for i, t in enumerate(a[name])]
            values[node] = _call(node.target, a, values)
    return values


def _zeroed(operand: torch.Tensor, closing: tags.Closing, units: Units) -> torch.Tensor:
    mask = torch.zeros(closing.dim.size, dtype=operand.dtype)
    mask[torch.from_numpy(closing.dim.flat_index(units))] = 1
    return operand * mask.reshape([-1 if i == closing.position % operand.ndim else 1 for i in range(operand.ndim)])


def narrowable(axes: tags.Axes) -> list[Axis]:
    found = dict.fromkeys(axis for dims in axes.dims.values() for dim in dims for axis in dim.axes())
    return [axis for axis in found if axis.size > 1 and axis not in axes.pins and not axis.dynamic]


def _choices(axes: tags.Axes, rng: np.random.Generator) -> Iterator[Units]:
    """A single unit of each axis, all but one, some of each; and some of all axes at once, coupled ones apart."""

    def some(axis: Axis, count: int) -> np.ndarray:
        return np.sort(rng.choice(axis.size, count, replace=False))

    found = narrowable(axes)
    for axis in found:
        for count in sorted({1, axis.size - 1, int(rng.integers(1, axis.size))}):
            yield {axis: some(axis, count)}
    for together in ([a for a in found if a not in axes.coupled], [a for a in found if a in axes.coupled]):
        if len(together) > 1:
            yield {axis: some(axis, int(rng.integers(1, axis.size))) for axis in together}


def check_narrowing(
    recorded: Recorded, axes: tags.Axes, function: Callable[..., Any], rng: np.random.Generator, compare: str = "exact"
) -> set[object]:
    """Narrows every axis that may be, and compares; returns the operators that a resizer has changed."""
    resized: set[object] = set()
    for units in _choices(axes, rng):
        got = _narrowed(recorded, axes, units, resized)
        if any(axis in axes.coupled for axis in units):
            # the function itself on the kept units: what a statistic over the kept part is
            results = function(*(got[node] for node in recorded.inputs))
            want = zip(recorded.outputs, [results] if isinstance(results, torch.Tensor) else results, strict=True)
        else:
            whole = _masked(recorded, axes, units)
            want = ((n, taken(whole[n], axes.dims[n.name], units)) for n in recorded.gm.graph.nodes if has_tensor(n))
        for node, value in want:
            where = f"{node.format_node()} with {', '.join(f'{axis} at {chosen}' for axis, chosen in units.items())}"
            assert got[node].shape == value.shape, where
            if compare == "exact":
                assert torch.equal(got[node], value), where
            elif compare == "close":
                torch.testing.assert_close(got[node], value, rtol=1e-12, atol=1e-12, msg=where)
    return resized


def check(row: Row) -> set[object]:
    rng = np.random.default_rng(len(str(row)))
    recorded = record(row.function, make_inputs(row.inputs, rng))
    assert any(node.target is row.op for node in recorded.gm.graph.nodes), f"no {row.op} in the graph"
    axes = walk(recorded)
    assert in_letters(axes, recorded) == row.dims
    return check_narrowing(recorded, axes, row.function, rng, row.compare)


def reasons(function: Callable[..., Any], inputs: Sequence[Input]) -> set[str]:
    """Why axes of the inputs are pinned."""
    recorded = record(function, make_inputs(inputs, np.random.default_rng(0)))
    axes = walk(recorded)
    mine = {axis for node in recorded.inputs for dim in axes.dims[node.name] for axis in dim.axes()}
    return {reason for axis, found in axes.pins.items() for reason in found if axis in mine}
