"""Graphs as text: typed, stable, each value with its axes and the line of the model's own code that it comes from."""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch.fx import GraphModule, Node

from estfx.graphs import tags
from estfx.graphs.dimensions import Axis, Dim, Product, Sum
from estfx.graphs.fx_graphs import has_tensor, source_line, tensor_of
from estfx.graphs.gather import take
from estfx.graphs.provenance import passes_of

__all__ = [
    "argument_text",
    "axes_text",
    "graph_diff",
    "graph_text",
    "operator_name",
    "size_names",
    "size_text",
    "type_text",
]

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "b1",
}


Row = tuple[str, str, str, str]  # value, operator and arguments; type; axes; where it comes from


def graph_text(gm: GraphModule) -> str:
    """One line a node: value, operator, arguments, type, axes by role, source line; passes that made or changed it."""
    rows = rows_of(gm)
    return "\n".join([f"graph {gm._get_name()}:", *aligned(rows, widths_of(rows))]) + "\n"


def graph_diff(before: GraphModule, after: GraphModule, names: tuple[str, str], context: int = 3) -> str:
    """The unified difference of two graphs' texts, in the same columns; empty if they are the same."""
    rows = [rows_of(gm) for gm in (before, after)]
    widths = widths_of([row for each in rows for row in each])
    old, new = (aligned([(*row[:3], row[3].partition(";")[0]) for row in each], widths) for each in rows)
    return "\n".join(difflib.unified_diff(old, new, *names, n=context, lineterm=""))


def rows_of(gm: GraphModule) -> list[Row]:
    symbols = size_names(gm)
    return [_row(gm, node, symbols) for node in gm.graph.nodes]


def widths_of(rows: list[Row]) -> list[int]:
    return [max((len(row[i]) for row in rows), default=0) for i in range(3)]


def aligned(rows: list[Row], widths: list[int]) -> list[str]:
    """The rows in columns."""
    cells = ([cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)] for row in rows)
    return [f"    {'  '.join(each)}".rstrip() for each in cells]


def size_names(gm: GraphModule) -> dict[str, str]:
    """Short names for dynamic sizes, in the order in which inputs bring them: the stream's are b and t."""
    names = iter(["b", "t", *(f"n{i}" for i in range(1, 1000))])
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" and has_tensor(node):
            for size in tensor_of(node).shape:
                if isinstance(size, torch.SymInt):
                    for symbol in sorted(map(str, size.node.expr.free_symbols)):
                        if symbol not in found:
                            found[symbol] = next(names)
    return found


def size_text(size: object, symbols: dict[str, str]) -> str:
    """A size, or anything else that is computed from sizes, with short names for the dynamic ones."""
    return re.sub(r"[a-z]+\d+", lambda match: symbols.get(match[0], match[0]), str(size))


def _row(gm: GraphModule, node: Node, symbols: dict[str, str]) -> Row:
    if node.op == "output":
        return (f"return {argument_text(node.args[0])}", "", "", "")
    if node.op == "placeholder":
        interface = gm.meta.get(tags.Interface.__qualname__)
        weights = dict(interface.weights) if interface else {}
        what = f"weight {weights[node.name]}" if node.name in weights else "input"
        text = f"%{node.name} = {what}"
    elif node.op == "get_attr":
        text = f"%{node.name} = constant {node.target}"
    else:
        arguments = [argument_text(a) for a in node.args]
        arguments += [f"{name}={argument_text(value)}" for name, value in node.kwargs.items()]
        text = f"%{node.name} = {operator_name(node)}({', '.join(arguments)})"
    origin = "; ".join(filter(None, [source_line(node), ", ".join(passes_of(node))]))
    return (text, type_text(node, symbols), axes_text(gm, node), f"# {origin}" if origin else "")


def operator_name(node: Node) -> str:
    """As in ATen's schemas, without the namespace."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    return getattr(node.target, "__name__", str(node.target))


def argument_text(value: Any) -> str:
    """An argument as it stands in a printed graph."""
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(argument_text, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "end" if value == 2**63 - 1 else str(value).removeprefix("torch.")


def type_text(node: Node, symbols: dict[str, str]) -> str:
    """Such as `f32[b, t, 512]`; empty for what is no tensor."""
    if not has_tensor(node):
        return ""
    value = tensor_of(node)
    return f"{DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(size_text(size, symbols) for size in value.shape)}]"


def axes_text(gm: GraphModule, node: Node) -> str:
    """The dimensions that contain an axis with a role, as expressions over roles and sizes; a dot for any other."""
    axes = gm.meta.get(tags.Axes.__qualname__)
    roles = gm.meta.get(tags.Roles.__qualname__)
    whole = node
    while whole.target is take:  # of the same axes as what it takes from
        whole = whole.all_input_nodes[0]
    if axes is None or roles is None or whole.name not in axes.dims:
        return ""
    names = {role.axis: role.name for role in roles.found}
    dims = axes.dims[whole.name]
    if not any(axis in names for dim in dims for axis in dim.axes()):
        return ""
    shown = [_dim(dim, names) if any(a in names for a in dim.axes()) else "." for dim in dims]
    return f"({', '.join(shown)})"


def _dim(dim: Dim, names: dict[Axis, str]) -> str:
    if isinstance(dim, Axis):
        return names.get(dim, "n" if dim.dynamic else str(dim.size))
    if isinstance(dim, Product):
        return "·".join(f"({_dim(f, names)})" if isinstance(f, Sum) else _dim(f, names) for f in dim.factors)
    return " + ".join(_dim(term, names) for term in dim.terms)
