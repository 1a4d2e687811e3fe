"""Graphs of a stage as Python that runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from estfx.dumping.constants import packed
from estfx.dumping.stage_graphs import StageGraphs
from estfx.dumping.text import header, kind_header
from estfx.errors import EstfxError
from estfx.graphs import (
    axes_text,
    extent_of,
    is_own_function,
    opaque_module_of,
    passes_of,
    size_names,
    source_line,
    tags,
    tensor_of,
    type_text,
)

__all__ = ["code"]


def code(graphs: StageGraphs) -> str:
    """A module with a function for each kind, from its stream, sides, indices and weights to a tuple of tensors.

    Run as a script, it calls each of them with random numbers, and prints the shapes of what it returns.
    """
    imports: set[str] = set()
    functions = [f"{kind_header(kind, graphs)}\n{_function(kind.graph, kind.name, imports)}" for kind in graphs.kinds]
    lines = [header(graphs), "", *sorted(imports), "", "import torch", ""]
    if any("unpacked(" in each for each in functions):
        lines.insert(-2, "from estfx.dumping.constants import unpacked")
    calls = [
        'if __name__ == "__main__":',
        "    torch.manual_seed(0)",
        *(_call(kind.graph, kind.name) for kind in graphs.kinds),
    ]
    return "\n".join([*lines, *(f"\n{each}" for each in functions), "", *calls, ""])


def _call(gm: GraphModule, name: str) -> str:
    """Lines that call a function with inputs of the shapes that the graph was traced with, and print what it gives."""
    indices = {gather.placeholder for gather in tags.get(gm, tags.Indices, tags.Indices()).gathers}
    given = [
        f"        {node.name}={_random(tensor_of(node), node.name in indices)},"
        for node in gm.graph.nodes
        if node.op == "placeholder"
    ]
    return "\n".join(
        [f"    outputs = {name}(", *given, "    )", f'    print("{name}:", [tuple(each.shape) for each in outputs])']
    )


def _random(value: torch.Tensor, index: bool) -> str:
    shape, dtype = [extent_of(size)[0] for size in value.shape], str(value.dtype)
    if index:
        return f"torch.arange({shape[-1]})" + (f".expand({shape})" if len(shape) > 1 else "")
    if value.dtype.is_floating_point or value.dtype.is_complex:
        return f"torch.randn({shape}, dtype={dtype}) / 10"
    return f"torch.ones({shape}, dtype={dtype})"


def _function(gm: GraphModule, name: str, imports: set[str]) -> str:
    symbols = size_names(gm)
    inputs = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    inner: list[str] = []
    body = []
    for node in gm.graph.nodes:
        if node.op == "output":
            body.append(f"    return {_value(node.args[0], imports)}")
            continue
        if node.op == "get_attr":
            held = getattr(gm, str(node.target))
            if isinstance(held, GraphModule):
                inner.append(_function(held, f"{name}_{node.name}", imports))
                body.append(f"    {node.name} = {name}_{node.name}")
                continue
            text = _constant(held)
        elif node.op == "call_function":
            given = [_value(each, imports) for each in node.args]
            given += [f"{key}={_value(each, imports)}" for key, each in node.kwargs.items()]
            text = f"{_callable(node.target, imports)}({', '.join(given)})"
        else:
            continue
        body.append(f"    {node.name} = {text}{_comment(gm, node, symbols)}")
    head = f"def {name}({', '.join(inputs)}):"
    return "\n\n".join([*inner, "\n".join([head, *body])]) + "\n"


def _comment(gm: GraphModule, node: Node, symbols: dict[str, str]) -> str:
    parts = [type_text(node, symbols), axes_text(gm, node), source_line(node), ", ".join(passes_of(node))]
    shown = "  ".join(filter(None, parts))
    return f"  # {shown}" if shown else ""


def _constant(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        raise EstfxError(
            f"a graph holds a {type(value).__name__}, which cannot be written as Python; use --format text."
        )
    dtype = str(value.dtype)
    if value.numel() <= 16 and all(math.isfinite(each) for each in value.double().flatten().tolist()):
        return f"torch.tensor({value.tolist()}, dtype={dtype})"
    return f"unpacked({packed(value)!r}, {dtype.removeprefix('torch.')!r}, {list(value.shape)})"


def _value(value: Any, imports: set[str]) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, torch.device):
        return repr(str(value))
    if isinstance(value, slice):
        return f"slice({', '.join(_value(each, imports) for each in (value.start, value.stop, value.step))})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_value(each, imports) for each in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_value(k, imports)}: {_value(v, imports)}' for k, v in value.items())}}}"
    return _callable(value, imports) if callable(value) else repr(value)


def _callable(target: Any, imports: set[str]) -> str:
    """An expression for a function, with the import that it needs."""
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"torch.ops.higher_order.{target.name()}"
    if (opaque := opaque_module_of(target)) is not None:
        raise EstfxError(
            f"a graph calls `{opaque.path}` ({type(opaque.module).__name__}), a part of the model that no graph can "
            "hold; use --format text."
        )
    module, name = target.__module__, target.__qualname__
    if is_own_function(target):
        name += ".apply"
    module = "operator" if module == "_operator" else module
    if "<locals>" in name:
        raise EstfxError(f"a graph calls {name} of {module}, a function that cannot be imported; use --format text.")
    if module == "builtins":
        return str(name)
    imports.add(f"import {module}")
    return f"{module}.{name}"
