"""Graphs that were written as JSON, made GraphModules again."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.fx import Graph, GraphModule, Node

from estfx.dumping.constants import unpacked
from estfx.dumping.records import Dump, GraphRecord
from estfx.errors import EstfxError
from estfx.graphs import callable_of

__all__ = ["graph_module", "load_graphs"]

IMPORTED = ("torch", "transformers", "estfx", "operator", "math")  # from which a file's functions are imported


def load_graphs(source: str | Path | Dump) -> dict[str, GraphModule]:
    """The graph of every kind in a JSON dump (a path, or what `record_of` gives), ready to be called.

    Each takes its inputs and weights in the order of its nodes, and returns a list of tensors. Functions are looked
    up in torch, transformers and estfx, and in modules that are imported already; nothing else is imported.

    Raises EstfxError for what is no such file, or names a function that cannot be found.
    """
    if not isinstance(source, Dump):
        try:
            source = Dump.model_validate_json(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise EstfxError(f"{source} cannot be read: {error.strerror}.") from None
        except (ValidationError, ValueError) as error:
            first = str(error).splitlines()[:3]
            raise EstfxError(f"{source} is no dump of estfx in JSON, version 1: {' '.join(first)}") from None
    return {kind.name: graph_module(kind.graph, kind.name) for kind in source.kinds}


def graph_module(record: GraphRecord, name: str) -> GraphModule:
    """A graph that can be called, from plain data. Raises EstfxError for a function that cannot be found."""
    graph, root = Graph(), nn.Module()
    for place, held in record.constants.items():
        root.register_buffer(place, unpacked(held.data, held.dtype, held.shape), persistent=False)
    for place, body in record.graphs.items():
        root.add_module(place, graph_module(body, place))
    nodes: dict[str, Node] = {}
    for each in record.nodes:
        if each.op == "layer":
            raise EstfxError(f"{name} calls the layer {each.target}; the outer graph is to be read only.")
        args = tuple(_decoded(value, nodes) for value in each.args)
        kwargs = {key: _decoded(value, nodes) for key, value in each.kwargs.items()}
        kind = {"call": "call_function", "constant": "get_attr", "graph": "get_attr"}.get(each.op, "placeholder")
        target = _function(each.target) if each.op == "call" else each.target
        if kind == "placeholder":
            target, args = each.name, ()
        node = graph.create_node(kind, target, args, kwargs, name=each.name)
        if node.name != each.name:
            raise EstfxError(f"{name} has two values called {each.name}.")
        nodes[each.name] = node
    graph.output(_decoded(record.returns, nodes))
    made = GraphModule(root, graph, name)
    graph.lint()
    return made


def _function(name: str) -> Callable[..., Any]:
    kind, _, rest = name.partition("::")
    try:
        if kind == "higher_order":
            return getattr(torch.ops.higher_order, rest)  # type: ignore[no-any-return]
        if rest:
            packet, _, overload = rest.rpartition(".")
            return getattr(getattr(getattr(torch.ops, kind), packet), overload)  # type: ignore[no-any-return]
        own, module, place = name.split(":") if name.count(":") == 2 else ("", *name.split(":"))
        if module.partition(".")[0] in IMPORTED or module in sys.modules:
            found = operator.attrgetter(place)(importlib.import_module(module))
            return callable_of(found) if own else found
    except (AttributeError, ImportError):
        pass
    raise EstfxError(f"there is no function {name} here; import the module that has it first.")


def _decoded(value: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, nodes) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return nodes[inner]
        case "tuple":
            return tuple(_decoded(each, nodes) for each in inner)
        case "dict":
            return {_decoded(key, nodes): _decoded(each, nodes) for key, each in inner}
        case "slice":
            return slice(*(_decoded(each, nodes) for each in inner))
        case "float":
            return float(inner)
        case "dtype" | "layout" | "memory_format":
            return getattr(torch, inner)
        case "device":
            return torch.device(inner)
        case "function":
            return _function(inner)
    raise EstfxError(f"a value of kind {kind!r} ({inner}) cannot be made again.")
