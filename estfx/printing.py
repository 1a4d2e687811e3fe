"""Graphs as text: typed, stable, each value with its axes and the line of the model's own code that it comes from."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import GraphModule, Node

from estfx import tags
from estfx.axes import Axis, Dim, Product, Sum
from estfx.graphs import has_tensor, source_line, tensor_of

__all__ = ["graph_text"]

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "b1",
}


def graph_text(gm: GraphModule) -> str:
    """One line a node: value, operator, arguments, type, axes by role, source line."""
    symbols = _symbols(gm)
    rows = [_row(gm, node, symbols) for node in gm.graph.nodes]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
    ]
    return "\n".join([f"graph {gm._get_name()}:", *(f"    {line}" for line in lines)]) + "\n"


def _symbols(gm: GraphModule) -> dict[str, str]:
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


def _size(size: int | torch.SymInt, symbols: dict[str, str]) -> str:
    return re.sub(r"[a-z]+\d+", lambda match: symbols.get(match[0], match[0]), str(size))


def _row(gm: GraphModule, node: Node, symbols: dict[str, str]) -> tuple[str, str, str, str]:
    if node.op == "output":
        return (f"return {_argument(node.args[0])}", "", "", "")
    if node.op == "placeholder":
        interface = gm.meta.get(tags.Interface.__qualname__)
        weights = dict(interface.weights) if interface else {}
        what = f"weight {weights[node.name]}" if node.name in weights else "input"
        text = f"%{node.name} = {what}"
    elif node.op == "get_attr":
        text = f"%{node.name} = constant {node.target}"
    else:
        arguments = [_argument(a) for a in node.args]
        arguments += [f"{name}={_argument(value)}" for name, value in node.kwargs.items()]
        text = f"%{node.name} = {_operator(node)}({', '.join(arguments)})"
    place = source_line(node)
    return (text, _type(node, symbols), _axes(gm, node), f"# {place}" if place else "")


def _operator(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    return getattr(node.target, "__name__", str(node.target))


def _argument(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "end" if value == 2**63 - 1 else str(value).removeprefix("torch.")


def _type(node: Node, symbols: dict[str, str]) -> str:
    if not has_tensor(node):
        return ""
    value = tensor_of(node)
    return f"{DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(_size(size, symbols) for size in value.shape)}]"


def _axes(gm: GraphModule, node: Node) -> str:
    """The dimensions that contain an axis with a role, as expressions over roles and sizes; a dot for any other."""
    axes = gm.meta.get(tags.Axes.__qualname__)
    roles = gm.meta.get(tags.Roles.__qualname__)
    if axes is None or roles is None or node.name not in axes.dims:
        return ""
    names = {role.axis: role.name for role in roles.found}
    dims = axes.dims[node.name]
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
