from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from estfx.graphs import arguments, has_tensor, tensor_of
from estfx.pipeline import Rewrite

aten = torch.ops.aten
ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._check,
}
VIEWS = {aten.view.default, aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.select.int, operator.getitem}


@dataclass(frozen=True)
class DropNoise(Rewrite):
    """Takes out what computes nothing, and gives what is left its plain form.

    before                                              after
        _ = _assert_tensor_metadata(%x, …)
        %y = to(%x, float32)        # it is already         %y is %x
        %z = slice(%y, 0, 0, 2^63-1)                        %z is %x
        %i = index(%z, [None, %c])  # %c = [-1]             %i = slice(%x, 1, n - 1, n)
        %a = add_(%i, %b)           # %i read only here     %a = add(%i, %b)
    """

    def run(self, gm: GraphModule) -> int:
        edits = 0
        for node in list(gm.graph.nodes):
            if node.op == "call_function":
                edits += any(edit(gm, node) for edit in EDITS)
        return edits


def _drop_assertion(gm: GraphModule, node: Node) -> bool:
    if node.target not in ASSERTIONS or node.users:
        return False
    gm.graph.erase_node(node)
    return True


def _drop_identity(gm: GraphModule, node: Node) -> bool:
    if not has_tensor(node) or not node.args or not has_tensor(source := node.args[0]):
        return False
    assert isinstance(source, Node)
    before, after = tensor_of(source), tensor_of(node)
    same = before.dtype == after.dtype and before.device == after.device and str(before.shape) == str(after.shape)
    match node.target:
        case aten.to.dtype | aten.to.dtype_layout | aten.to.device | aten.to.other | aten.type_as.default:
            idle = same and not arguments(node).get("copy")
        case aten.alias.default | aten.lift_fresh.default | aten.lift_fresh_copy.default:
            idle = True
        case aten.slice.Tensor | aten.expand.default:
            idle = same
        case aten.dropout.default:
            idle = arguments(node)["p"] == 0 or not arguments(node)["train"]
        case _:
            idle = False
    if idle:
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
    return idle


def _plain_indexing(gm: GraphModule, node: Node) -> bool:
    """Indexing by a constant run of positions is a slice."""
    if node.target is not aten.index.Tensor:
        return False
    places = [(i, n) for i, n in enumerate(node.args[1]) if n is not None]  # type: ignore[arg-type, union-attr]
    if len(places) != 1 or not isinstance(places[0][1], Node) or places[0][1].op != "get_attr":
        return False
    at, constant = places[0]
    positions = getattr(gm, str(constant.target))
    size = tensor_of(node.args[0]).shape[at]  # type: ignore[arg-type]
    if positions.ndim != 1 or positions.dtype is torch.bool or isinstance(size, torch.SymInt):
        return False
    runs = [int(p) % size for p in positions]
    if runs != list(range(runs[0], runs[0] + len(runs))):
        return False
    node.target = aten.slice.Tensor
    node.args = (node.args[0], at, runs[0], runs[-1] + 1)
    return True


def _functional(gm: GraphModule, node: Node) -> bool:
    """An operator in place on a value of its own, which nothing reads afterwards, is the plain operator."""
    name = getattr(node.target, "_schema", None) and node.target._schema.name  # type: ignore[union-attr]
    if not name or not name.endswith("_") or name.endswith("__") or not has_tensor(node.args[0]):
        return False
    mutated = node.args[0]
    assert isinstance(mutated, Node)
    plain = getattr(getattr(aten, name.removeprefix("aten::").removesuffix("_"), None), node.target._overloadname, None)  # type: ignore[union-attr]
    if plain is None or mutated.op != "call_function" or mutated.target in VIEWS:
        return False
    if any(user is not node and user.target in VIEWS for user in mutated.users):
        return False
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    node.target = plain
    mutated.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])
    return True


EDITS: tuple[Callable[[GraphModule, Node], bool], ...] = (_drop_assertion, _drop_identity, _plain_indexing, _functional)
