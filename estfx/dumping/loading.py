"""Graphs that were written as JSON, made GraphModules again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.fx import Graph, GraphModule, Node

from estfx.dumping.allowed_functions import function_named
from estfx.dumping.constants import unpacked
from estfx.dumping.records import Dump, GraphRecord
from estfx.errors import EstfxError

__all__ = ["graph_module", "load_graphs"]


def load_graphs(source: str | Path | Dump, *, allowed: Collection[str] = ()) -> dict[str, GraphModule]:
    """The graph of every kind in a JSON dump (a path, or what `record_of` gives), ready to be called.

    Each takes its inputs and weights in the order of its nodes, and returns a list of tensors. A file may call
    operators of ATen, of torch's higher order, of estfx and of transformers, autograd.Functions of modules that are
    imported already, and arithmetic of sizes; all other names only if they are among `allowed`, such as
    `"mylibrary::attention.default"`. So a file from somebody else can be read without fear.

    Raises EstfxError for what is no such file, or calls a function that cannot be found or is not allowed.
    """
    if not isinstance(source, Dump):
        try:
            source = Dump.model_validate_json(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise EstfxError(f"{source} cannot be read: {error.strerror}.") from None
        except (ValidationError, ValueError) as error:
            first = str(error).splitlines()[:3]
            raise EstfxError(f"{source} is no dump of estfx in JSON, version 1: {' '.join(first)}") from None
    return {kind.name: graph_module(kind.graph, kind.name, allowed) for kind in source.kinds}


def graph_module(record: GraphRecord, name: str, allowed: Collection[str] = ()) -> GraphModule:
    """A graph that can be called, from plain data. Raises EstfxError for a function that it may not call."""
    graph, root = Graph(), nn.Module()
    for place, held in record.constants.items():
        root.register_buffer(place, unpacked(held.data, held.dtype, held.shape), persistent=False)
    for place, body in record.graphs.items():
        root.add_module(place, graph_module(body, place, allowed))
    nodes: dict[str, Node] = {}
    for each in record.nodes:
        if each.op == "layer":
            raise EstfxError(f"{name} calls the layer {each.target}; the outer graph is to be read only.")
        args = tuple(_decoded(value, nodes, allowed) for value in each.args)
        kwargs = {key: _decoded(value, nodes, allowed) for key, value in each.kwargs.items()}
        kind = {"call": "call_function", "constant": "get_attr", "graph": "get_attr"}.get(each.op, "placeholder")
        target = function_named(each.target, allowed) if each.op == "call" else each.target
        if kind == "placeholder":
            target, args = each.name, ()
        node = graph.create_node(kind, target, args, kwargs, name=each.name)
        if node.name != each.name:
            raise EstfxError(f"{name} has two values called {each.name}.")
        nodes[each.name] = node
    graph.output(_decoded(record.returns, nodes, allowed))
    made = GraphModule(root, graph, name)
    graph.lint()
    return made


def _decoded(value: Any, nodes: dict[str, Node], allowed: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, nodes, allowed) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return nodes[inner]
        case "tuple":
            return tuple(_decoded(each, nodes, allowed) for each in inner)
        case "dict":
            return {_decoded(key, nodes, allowed): _decoded(each, nodes, allowed) for key, each in inner}
        case "slice":
            return slice(*(_decoded(each, nodes, allowed) for each in inner))
        case "float":
            return float(inner)
        case "dtype" | "layout" | "memory_format":
            found = getattr(torch, inner)
            if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
                raise EstfxError(f"{inner!r} is no {kind} of torch.")
            return found
        case "device":
            return torch.device(inner)
        case "function":
            return function_named(inner, allowed)
    raise EstfxError(f"a value of kind {kind!r} ({inner}) cannot be made again.")
