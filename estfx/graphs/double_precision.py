"""A graph in float64, for an oracle whose rounding must not hide a mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from estfx.graphs.fx_graphs import has_tensor

__all__ = ["InDouble", "promoted", "without_dropout"]

aten = torch.ops.aten
_library = torch.library.Library("estfx", "FRAGMENT")
_library.define(
    "grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, Tensor? bias=None, ScalarType? out_dtype=None) -> Tensor"
)


def _grouped_product(
    self: torch.Tensor,
    mat2: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`aten._grouped_mm` of rows by experts, which exists in no double precision, one group after the other."""
    ends = offs.tolist()
    starts = [0, *ends[:-1]]
    parts = [self[start:end] @ mat2[group] for group, (start, end) in enumerate(zip(starts, ends, strict=True))]
    product = torch.cat([*parts, self.new_zeros(len(self) - ends[-1], mat2.shape[-1])])
    return product if bias is None else product + bias


_library.impl("grouped_mm", _grouped_product, "CompositeImplicitAutograd")
IN_FLOAT64 = {aten._grouped_mm.default: torch.ops.estfx.grouped_mm.default}


class InDouble(TorchDispatchMode):
    """While it lasts, code in float64 stays so, where it asks for a smaller type or an operator has no other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        double = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in args)
        if double and func is aten._to_copy.default and getattr(kwargs.get("dtype"), "is_floating_point", False):
            kwargs["dtype"] = torch.float64
        return (IN_FLOAT64.get(func, func) if double else func)(*args, **kwargs)


def promoted(gm: GraphModule) -> GraphModule:
    """The graph in float64 wherever it names a smaller type, and without dropout, whose draws depend on sizes."""
    without_dropout(gm)
    for node in gm.graph.nodes:
        _with_dtype(node)
        node.target = IN_FLOAT64.get(node.target, node.target)
        node.args = pytree.tree_map(_double_dtype, node.args, is_leaf=lambda x: isinstance(x, Node))
        node.kwargs = pytree.tree_map(_double_dtype, node.kwargs, is_leaf=lambda x: isinstance(x, Node))
        if node.op == "get_attr" and isinstance(value := getattr(gm, node.target), torch.Tensor):
            setattr(gm, node.target, value.double() if value.is_floating_point() else value)
    gm.recompile()
    return gm


def without_dropout(gm: GraphModule) -> GraphModule:
    """The graph, with a probability of 0 wherever it drops something."""
    for node in gm.graph.nodes:
        schema: Any = getattr(node.target, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name == "dropout_p" or (argument.name == "p" and "dropout" in schema.name):
                if position < len(node.args):
                    node.update_arg(position, 0.0)
                elif argument.name in node.kwargs:
                    node.update_kwarg(argument.name, 0.0)
    gm.recompile()
    return gm


def _with_dtype(node: Node) -> None:
    """What makes a tensor out of no other, in the default type, makes it in float64."""
    schema = getattr(node.target, "_schema", None)
    made = isinstance(node.meta.get("val"), torch.Tensor) and not any(map(has_tensor, node.all_input_nodes))
    if schema is None or not made or not node.meta["val"].is_floating_point():
        return
    if node.kwargs.get("dtype") is None and any(argument.name == "dtype" for argument in schema.arguments):
        node.update_kwarg("dtype", torch.float64)


def _double_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
