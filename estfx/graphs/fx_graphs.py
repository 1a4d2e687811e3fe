"""Reading and copying torch.fx graphs of ATen operators."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from estfx.graphs.dimensions import extent_of

__all__ = [
    "arguments",
    "clone",
    "describe",
    "has_tensor",
    "is_model_code",
    "nodes_within",
    "propagate_shapes",
    "sizes",
    "source_line",
    "tensor_of",
]


def tensor_of(node: Node) -> torch.Tensor:
    """The fake tensor that stands for the node's value."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), f"{node} is no tensor"
    return value


def has_tensor(node: object) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def sizes(node: Node) -> tuple[int, ...]:
    """The shape, with the example inputs' value for a dynamic size."""
    return tuple(extent_of(size)[0] for size in tensor_of(node).shape)


def arguments(node: Node) -> dict[str, Any]:
    """An ATen node's arguments by name, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def clone(gm: GraphModule) -> GraphModule:
    """A copy that may be edited: same names, same metadata, shared constants and fake values."""
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, copies)
    last = graph.output(output)
    last.meta = copy.copy(gm.graph.output_node().meta)
    for old, new in copies.items():
        new.meta = copy.copy(old.meta)
        assert old.name == new.name, f"{old.name} became {new.name}"
    copied = GraphModule(gm, graph, type(gm).__name__)
    copied.meta = dict(gm.meta)
    return copied


class _ShapePropagation(torch.fx.Interpreter):
    """Runs a graph on fake values and notes each node's."""

    def __init__(self, gm: GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm)
        self.mode = mode

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value, static_shapes=True) if isinstance(value, torch.Tensor) else value

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = value
        return value


def propagate_shapes(gm: GraphModule) -> None:
    """Computes the fake value of every node anew from those of the placeholders."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    mode = tensor_of(placeholders[0]).fake_mode  # type: ignore[attr-defined]
    gm.recompile()
    with mode, enable_python_dispatcher(), torch.enable_grad():
        _ShapePropagation(gm, mode).run(*(n.meta["val"] for n in placeholders), enable_io_processing=False)


def nodes_within(value: Any) -> Iterator[Node]:
    """The nodes in an argument, however nested."""
    for leaf in pytree.tree_leaves(value, is_leaf=lambda x: isinstance(x, (Node, slice))):
        if isinstance(leaf, Node):
            yield leaf


def is_model_code(path: str) -> bool:
    """Whether a file of Python is neither torch's nor of this package."""
    return not path.startswith("torch/") and "/torch/" not in path and "/estfx/" not in path


def source_line(node: Node) -> str:
    """Where the model's own code made this value, as `modeling_gpt2.py:123`, or an empty string."""
    trace = node.meta.get("stack_trace") or ""
    for line in reversed(trace.splitlines()):
        line = line.strip()
        path, _, rest = line.removeprefix('File "').partition('", line ')
        if rest and is_model_code(path):
            return f"{path.rsplit('/', 1)[-1]}:{rest.split(',')[0].strip()}"
    return ""


def describe(node: Node) -> str:
    """A node for a message: its operator, and where it comes from."""
    target = str(node.target).removeprefix("aten.") if node.op == "call_function" else node.op
    place = source_line(node)
    return f"{node.name} = {target}" + (f" ({place})" if place else "")
