"""Graphs of a stage as plain data, and as JSON; `estfx.dumping.loading` reads it.

Arguments stand in it as JSON has them; what JSON has not is an object with one key that says what it is: `node` (a
name), `tuple`, `dict` (pairs), `slice`, `float` (one that is not finite), `dtype`, `device`, `layout`, `memory_format`,
`function`.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.fx import GraphModule, Node

from estfx.costs import node_flops
from estfx.dumping.constants import packed
from estfx.dumping.stage_graphs import KindGraph, StageGraphs
from estfx.graphs import (
    argument_text,
    axes_text,
    branches_of,
    is_own_function,
    opaque_module_of,
    operator_name,
    passes_of,
    size_names,
    size_text,
    source_line,
    tags,
    type_text,
)

__all__ = ["Dump", "GraphRecord", "KindRecord", "NodeRecord", "graph_record", "json_text", "record_of"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeRecord(_Record):
    """A value of a graph, and how it comes about."""

    name: str
    op: Literal["input", "weight", "constant", "graph", "call", "layer"]
    target: str = ""  # the function, `aten::linear.default`; a weight's path; a constant's or a graph's name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    text: str  # operator and arguments as in the text format
    type: str = ""  # `f32[b, t, 512]`
    axes: str = ""  # by role, `(., ., neurons)`
    source: str = ""  # file and line of the model's own code
    passes: list[str] = []  # that made or changed it
    flops: int = 0  # forward, for one sequence of 128 tokens


class ConstantRecord(_Record):
    """A tensor; see `packed`."""

    dtype: str
    shape: list[int]
    data: str


class GraphRecord(_Record):
    """A graph: its nodes in order; inputs and weights are its arguments in that order."""

    nodes: list[NodeRecord]
    returns: Any
    constants: dict[str, ConstantRecord] = {}
    graphs: dict[str, GraphRecord] = {}  # bodies of loops and conditions
    branches: list[tuple[str, list[str]]] = []  # parts of the graph: title, nodes


class KindRecord(_Record):
    """A kind of layers in the stage."""

    name: str
    layers: list[str]
    droppable: bool
    reason: str  # why not
    roles: dict[str, tuple[int, int]]  # kept, of how many
    notes: list[str]
    graph: GraphRecord


class Dump(_Record):
    """What `estfx dump --format json` writes."""

    format: Literal["estfx-graphs"] = "estfx-graphs"
    version: Literal[1] = 1
    model: str
    stage: int = Field(ge=1)
    num_stages: int
    start: int  # first optimizer step
    keep_layers: float
    kinds: list[KindRecord]
    left: dict[str, str]  # layers without a graph, and why
    outer: GraphRecord | None  # the model with each layer as one call, to be read only
    outer_note: str = ""


def record_of(graphs: StageGraphs) -> Dump:
    """The graphs of a stage as plain data."""
    return Dump(
        model=graphs.model,
        stage=graphs.number,
        num_stages=graphs.num_stages,
        start=graphs.stage.start,
        keep_layers=graphs.stage.layers,
        kinds=[_kind(kind) for kind in graphs.kinds],
        left=dict(graphs.left),
        outer=None if graphs.outer is None else graph_record(graphs.outer),
        outer_note=graphs.outer_note,
    )


def json_text(graphs: StageGraphs) -> str:
    """The record as JSON."""
    return record_of(graphs).model_dump_json(indent=1) + "\n"


def _kind(kind: KindGraph) -> KindRecord:
    return KindRecord(
        name=kind.name,
        layers=list(kind.layers),
        droppable=kind.droppable,
        reason=kind.reason,
        roles=dict(kind.roles),
        notes=list(kind.notes),
        graph=graph_record(kind.graph),
    )


def graph_record(gm: GraphModule) -> GraphRecord:
    """A graph as plain data."""
    symbols, flops = size_names(gm), node_flops(gm)
    weights = dict(gm.meta[tags.Interface.__qualname__].weights) if tags.Interface.__qualname__ in gm.meta else {}
    nodes, constants, bodies = [], {}, {}
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        op, target = _op(gm, node, weights)
        if op == "constant":
            held = operator.attrgetter(target)(gm)
            constants[target] = ConstantRecord(
                dtype=str(held.dtype).removeprefix("torch."), shape=list(held.shape), data=packed(held)
            )
        elif op == "graph":
            bodies[target] = graph_record(getattr(gm, target))
        arguments = ", ".join(
            [*map(argument_text, node.args), *(f"{k}={argument_text(v)}" for k, v in node.kwargs.items())]
        )
        nodes.append(
            NodeRecord(
                name=node.name,
                op=op,
                target=target,
                args=[_encoded(each) for each in node.args],
                kwargs={key: _encoded(each) for key, each in node.kwargs.items()},
                text=f"{operator_name(node)}({arguments})" if op in ("call", "layer") else f"{op} {target}".strip(),
                type=type_text(node, symbols) or _size(node, symbols),
                axes=axes_text(gm, node),
                source=source_line(node),
                passes=list(passes_of(node)),
                flops=flops.get(node.name, 0),
            )
        )
    return GraphRecord(
        nodes=nodes,
        returns=_encoded(gm.graph.output_node().args[0]),
        constants=constants,
        graphs=bodies,
        branches=[(title, list(names)) for title, names in branches_of(gm)],
    )


def _op(gm: GraphModule, node: Node, weights: dict[str, str]) -> tuple[Any, str]:
    if node.op == "placeholder":
        return ("weight", weights[node.name]) if node.name in weights else ("input", "")
    if node.op == "get_attr":
        held = operator.attrgetter(str(node.target))(gm)
        return ("graph" if isinstance(held, GraphModule) else "constant", str(node.target))
    if node.op == "call_module":
        return "layer", str(node.target)
    return "call", _function_name(node.target)


def _size(node: Node, symbols: dict[str, str]) -> str:
    value = node.meta.get("val")
    return f"size {size_text(value, symbols)}" if isinstance(value, (int, torch.SymInt)) else ""


def _function_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}::{target._schema.name.partition('::')[2]}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order::{target.name()}"
    if (opaque := opaque_module_of(target)) is not None:
        return f"opaque:{opaque.path}:{type(opaque.module).__name__}"
    kind = "autograd:" if is_own_function(target) else ""
    return f"{kind}{'operator' if target.__module__ == '_operator' else target.__module__}:{target.__qualname__}"


def _encoded(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):  # torch.fx's own kind of list among them
        return [_encoded(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_encoded(each) for each in (value.start, value.stop, value.step)]}
    for kind in (torch.dtype, torch.layout, torch.memory_format):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if callable(value):
        return {"function": _function_name(value)}
    return {"other": str(value)}
