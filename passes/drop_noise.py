"""Takes out of a graph what computes nothing, so that no other pass has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

from estfx.graphs import CASTS, Rewrite, arguments, has_tensor, is_view, tensor_of, writes

aten = torch.ops.aten
ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._check,
}
COMPARISONS = {  # their plain forms give booleans
    overload
    for name in ("eq_", "ne_", "lt_", "le_", "gt_", "ge_")
    for overload in (getattr(aten, name).Scalar, getattr(aten, name).Tensor)
} | {aten.logical_and_.default, aten.logical_or_.default, aten.logical_xor_.default, aten.logical_not_.default}
ALIASES = {  # second names of operators
    getattr(getattr(aten, alias), overload): getattr(getattr(aten, name), overload)
    for alias, name in {
        "multiply": "mul",
        "subtract": "sub",
        "divide": "div",
        "true_divide": "div",
        "absolute": "abs",
        "negative": "neg",
        "clip": "clamp",
        "greater": "gt",
        "greater_equal": "ge",
        "less": "lt",
        "less_equal": "le",
        "not_equal": "ne",
        "fix": "trunc",
        "special_expit": "sigmoid",
        "arctan2": "atan2",
    }.items()
    for overload in getattr(aten, alias).overloads()
    if overload in getattr(aten, name).overloads()
}
COPIES = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


@dataclass(frozen=True)
class DropNoise(Rewrite):
    """Takes out what computes nothing, and gives what is left its plain form.

    before                                              after
        _ = _assert_tensor_metadata(%x, …)
        %y = to(%x, float32)        # it is already         %y is %x
        %z = slice(%y, 0, 0, 2^63-1)                        %z is %x
        %i = index(%z, [None, %c])  # %c = [-1]             %i = slice(%x, 1, n - 1, n)
        %v = mul(%x, %b)
        %a = add_(%v, %b)           # %v is no view         %a = add(%v, %b)
        %u = gelu(%x)               # nothing reads it
        %m = multiply(%x, %b)                               %m = mul(%x, %b)
    """

    def run(self, gm: GraphModule) -> int:
        edits = 0
        while found := sum(edit(gm, node) for edit in EDITS for node in reversed(list(gm.graph.nodes))):
            edits += found  # what one edit leaves behind may be noise to another
        return edits


def _drop_assertion(gm: GraphModule, node: Node) -> bool:
    if node.target not in ASSERTIONS or node.users:
        return False
    gm.graph.erase_node(node)
    return True


def _drop_unread(gm: GraphModule, node: Node) -> bool:
    """What draws random numbers stays, or those after it would be others."""
    if node.users or node.op not in ("get_attr", "call_function") or node.is_impure():
        return False
    gm.graph.erase_node(node)
    return True


def _drop_identity(gm: GraphModule, node: Node) -> bool:
    if node.op != "call_function" or not has_tensor(node) or not node.args or not has_tensor(source := node.args[0]):
        return False
    assert isinstance(source, Node)
    before, after = tensor_of(source), tensor_of(node)
    same = before.dtype == after.dtype and before.device == after.device and str(before.shape) == str(after.shape)
    if node.target in CASTS:
        idle = same and not arguments(node).get("copy")
    elif node.target in COPIES:
        idle = not _is_written(node)
    elif node.target is aten.detach_.default:
        idle = source.op == "get_attr" or source.target in COPIES
    elif node.target is aten.dropout.default:
        idle = arguments(node)["p"] == 0 or not arguments(node)["train"]
    else:
        idle = node.target is aten.alias.default or (same and node.target in (aten.slice.Tensor, aten.expand.default))
    if idle:
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
    return idle


def _plain_indexing(gm: GraphModule, node: Node) -> bool:
    """Indexing by a constant run of positions is a slice."""
    if node.target is not aten.index.Tensor:
        return False
    places = [(i, n) for i, n in enumerate(node.args[1]) if n is not None]  # type: ignore[arg-type]
    if len(places) != 1 or not isinstance(places[0][1], Node) or places[0][1].op != "get_attr":
        return False
    at, constant = places[0]
    positions = getattr(gm, str(constant.target))
    size = tensor_of(node.args[0]).shape[at]  # type: ignore[arg-type]
    if positions.ndim != 1 or positions.dtype is torch.bool or isinstance(size, torch.SymInt) or not len(positions):
        return False
    with unset_fake_temporarily():  # the model may have been built without weights
        runs = [int(p) % size for p in positions]
    if runs != list(range(runs[0], runs[0] + len(runs))):
        return False
    node.target = aten.slice.Tensor
    node.args = (node.args[0], at, runs[0], runs[-1] + 1)
    return True


def _plain_name(gm: GraphModule, node: Node) -> bool:
    if node.target not in ALIASES:
        return False
    node.target = ALIASES[node.target]
    return True


def _functional(gm: GraphModule, node: Node) -> bool:
    """An operator in place on a value of its own, with which nothing else shares memory, is the plain operator."""
    if not writes(node) or not node.args or not has_tensor(mutated := node.args[0]):
        return False
    assert isinstance(mutated, Node)
    assert isinstance(node.target, torch._ops.OpOverload)
    name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
    plain = getattr(getattr(aten, name, None), node.target._overloadname, None)
    if plain is None or mutated.op != "call_function" or is_view(mutated):
        return False
    if any(user is not node and (is_view(user) or writes(user)) for user in mutated.users):
        return False
    if not _keeps_dtype(node, mutated):
        return False
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    node.target = plain
    mutated.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])
    return True


def _keeps_dtype(node: Node, mutated: Node) -> bool:
    """Whether the plain operator gives the dtype of the value that this one writes to."""
    dtype = tensor_of(mutated).dtype
    operands = [tensor_of(n) for n in node.all_input_nodes if has_tensor(n)]
    return node.target not in COMPARISONS and all(torch.promote_types(dtype, x.dtype) == dtype for x in operands)


def _is_written(node: Node) -> bool:
    """Whether an operator in place reaches the memory of the node's value."""
    return any(writes(user) or (is_view(user) and _is_written(user)) for user in node.users)


EDITS: tuple[Callable[[GraphModule, Node], bool], ...] = (
    _drop_assertion,
    _drop_unread,
    _drop_identity,
    _plain_name,
    _plain_indexing,
    _functional,
)
