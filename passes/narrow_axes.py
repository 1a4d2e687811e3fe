"""Makes axes of a graph smaller."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from estfx.axes import FACTORIES, RESIZERS, Resize, entry
from estfx.errors import VerifyError
from estfx.graphs import (
    Axis,
    Dim,
    Product,
    Rewrite,
    Sum,
    arguments,
    coarse,
    describe,
    has_tensor,
    nodes_within,
    propagate_shapes,
    spread,
    tags,
    take,
    tensor_of,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class NarrowAxes(Rewrite):
    """`f(x)[kept] = f(x[kept])`: the kept units are taken where an axis is born; sizes made from it are computed again.

    before                                        after
        %w1 = placeholder                             %index = placeholder
        %w2 = placeholder                             %w1, %w2 = placeholder
                                                      %take = take(%w1, 0, %index)
                                                      %take_1 = take(%w2, 1, %index)
        %up = linear(%x, %w1)                         %up = linear(%x, %take)
        %act = view(%up, [b, t, 12, 64])              %act = view(%up, [b, t, 6, 64])
        %down = linear(%act, %w2)                     %down = linear(%act, %take_1)

    A value that the layer leaves somewhere, beside its result, keeps its shape: `spread(%up, 1, %index, 3072)` puts
    the kept units among zeros.
    """

    kept: Mapping[Axis, int] = field(default_factory=dict)
    needs: ClassVar = (tags.Axes, tags.Roles, tags.Interface)
    puts: ClassVar = (tags.Indices,)

    def run(self, gm: GraphModule) -> int:
        axes = {role.axis: role.name for role in tags.get(gm, tags.Roles).found}
        for axis, count in self.kept.items():
            if axis not in axes:
                raise VerifyError(f"{count} of {axis} are to be kept, but no role was found for that axis")
            if not 1 <= count <= axis.size:
                raise VerifyError(
                    f"{count} {axes[axis]} are to be kept; there are {axis.size}, and one at least must stay"
                )
        kept = {axis: count for axis, count in self.kept.items() if count != axis.size}
        if not kept:
            tags.put(gm, tags.Indices())
            return 0
        narrowing = _Narrowing(gm, kept)
        edits = narrowing.run()
        propagate_shapes(gm)
        gathers = tuple(narrowing.gathers.values())
        tags.put(gm, tags.Indices(gathers, kept, tuple(narrowing.narrowed), tuple(narrowing.of_one_unit)))
        return edits


@dataclass
class _Narrowing:
    gm: GraphModule
    kept: Mapping[Axis, int]
    gathers: dict[Dim, tags.Gather] = field(default_factory=dict)
    born: dict[Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.axes = tags.get(self.gm, tags.Axes)
        self.names = {role.axis: role.name for role in tags.get(self.gm, tags.Roles).found}
        interface = tags.get(self.gm, tags.Interface)
        inputs = {interface.stream, *interface.sides}
        placeholders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        self.last_side = next(n for n in reversed(placeholders) if n.name in inputs)
        self.last_birth = placeholders[-1]  # after which the next gather of an input goes
        self.weights = dict(interface.weights)
        self.narrowed: list[tuple[str, int, str]] = []
        self.of_one_unit: list[tuple[str, int, str]] = []
        self.anchor: Node | None = None  # the sizes of the node in hand are computed before it

    def run(self) -> int:
        edits = 0
        resize = Resize(self.axes, self.kept, self._materialise, self.born)
        for node in list(self.gm.graph.nodes):
            if node.op == "output" or not self._concerns(node, resize):
                continue
            born = node.op in ("placeholder", "get_attr") or node.name in self.axes.born
            if born or node.target in FACTORIES:
                edits += self._gather(node)
            elif (resizer := entry(RESIZERS, node.target)) is not None:
                self.anchor = node
                a = arguments(node)
                edits += _set_arguments(node, a, resizer(resize, node, a))
        for branches in tags.get(self.gm, tags.SeparateHeads).found:
            edits += self._leave_out(branches)
        return edits + self._spread_left()

    def _concerns(self, node: Node, resize: Resize) -> bool:
        names = [node.name, *(self.born.get(source, source.name) for source in nodes_within((node.args, node.kwargs)))]
        return any(resize.changes(dim) for name in names for dim in self.axes.dims.get(name, ()))

    # -- births -----------------------------------------------------------------------------------

    def _gather(self, node: Node) -> int:
        value = node
        graph = self.gm.graph
        taken: list[Node] = []
        for position, dim in enumerate(self.axes.dims[node.name]):
            if not any(axis in self.kept for axis in dim.axes()):
                continue
            after = taken[-1] if taken else self.last_birth if node.op == "placeholder" else node
            with graph.inserting_after(after):
                is_open = any(axis.dynamic for axis in dim.axes())
                # a weight's own size is fixed, though it may be a product with what a side input leaves open
                if is_open and not isinstance(tensor_of(node).shape[position], int):
                    new = self._gather_inside(value, position, dim)
                else:
                    new = [graph.call_function(take, (value, position, self._index(dim)))]
            for made in new:
                made.meta["stack_trace"] = node.meta.get("stack_trace")
            taken.extend(new)
            value = new[-1]
            if node.op == "placeholder":
                self.last_birth = value
            if new[0].target is take and node.name in self.weights:
                index = new[0].args[2]
                assert isinstance(index, Node)
                self.narrowed.append((self.weights[node.name], position, index.name))
        self.born[value] = node.name
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user not in taken)
        return len(taken)

    # -- branches ---------------------------------------------------------------------------------

    def _leave_out(self, branches: tags.Branches) -> int:
        """As many branches as heads are kept stay, and run on the weights of the kept ones."""
        nodes = {node.name: node for node in self.gm.graph.nodes}
        join, graph = nodes[branches.join], self.gm.graph
        heads = self.axes.counting(branches)
        if not any(axis in self.kept for axis in heads):
            return 0
        dim = heads[0] if len(heads) == 1 else Product(heads)
        count, index = dim.narrowed_size(self.kept), self._index(dim)
        for names in branches.weights:
            own = [nodes[name] for name in names]
            users = [list(node.users) for node in own]
            with graph.inserting_after(self.last_birth):
                stacked = graph.call_function(aten.stack.default, (own, 0))
            with graph.inserting_after(stacked):
                taken = graph.call_function(take, (stacked, 0, index))
            self.last_birth = taken
            for i in range(count):
                with graph.inserting_after(self.last_birth):
                    self.last_birth = graph.call_function(aten.select.int, (taken, 0, i))
                for user in users[i]:
                    user.replace_input_with(own[i], self.last_birth)
            self.of_one_unit += [(self.weights[n], i, index.name) for i, n in enumerate(names) if n in self.weights]
        parts: Any = join.args[0]
        join.args = (parts[:count], *join.args[1:])
        for branch in branches.nodes[count:]:
            for name in reversed(branch):
                graph.erase_node(nodes[name])
        return len(branches.nodes) - count

    def _spread_left(self) -> int:
        """What the layer leaves beside its result has all units again: those that do not run are zeros."""
        output, made = self.gm.graph.output_node(), 0
        values: list[Node] = list(output.args[0])  # type: ignore[arg-type]
        for i in tags.get(self.gm, tags.Interface).left:
            dims = self.axes.dims[self.born.get(values[i], values[i].name)]
            with self.gm.graph.inserting_before(output):
                for position, dim in enumerate(dims):
                    if any(axis in self.kept for axis in dim.axes()):
                        values[i] = self._spread(values[i], position, dim)
                        made += 1
        output.args = (tuple(values),)
        return made

    def _spread(self, value: Node, position: int, dim: Dim) -> Node:
        graph = self.gm.graph
        if not any(axis.dynamic for axis in dim.axes()):
            return graph.call_function(spread, (value, position, self._index(dim), dim.size))
        middle, parts = self._parts(value, dim)
        parts[1] = middle.narrowed_size(self.kept)
        split = graph.call_function(aten.unflatten.int, (value, position, parts))
        whole = graph.call_function(spread, (split, position + 1, self._index(middle), middle.size))
        return graph.call_function(aten.flatten.using_ints, (whole, position, position + 2))

    def _gather_inside(self, value: Node, position: int, dim: Dim) -> list[Node]:
        """A dimension with a dynamic part, such as batch · heads, is split, narrowed and put together again."""
        graph = self.gm.graph
        middle, parts = self._parts(value, dim)
        index = self._index(middle)
        split = graph.call_function(aten.unflatten.int, (value, position, parts))
        with graph.inserting_after(split):
            chosen = graph.call_function(take, (split, position + 1, index))
        with graph.inserting_after(chosen):
            merged = graph.call_function(aten.flatten.using_ints, (chosen, position, position + 2))
        return [split, chosen, merged]

    def _parts(self, value: Node, dim: Dim) -> tuple[Dim, list[int]]:
        """Of a dimension with a dynamic part, what lies in the middle and is narrowed, and all three sizes."""
        if not isinstance(dim, Product):
            raise VerifyError(f"{describe(value)}: {dim} has a dynamic part, and is no product")
        fixed = [i for i, f in enumerate(dim.factors) if any(axis in self.kept for axis in f.axes())]
        first, last = fixed[0], fixed[-1] + 1
        outer, middle, inner = dim.factors[:first], dim.factors[first:last], dim.factors[last:]
        static = [prod(f.size for f in part) for part in (outer, middle, inner)]
        parts: list[int] = [
            -1 if any(axis.dynamic for f in part for axis in f.axes()) else size
            for part, size in zip((outer, middle, inner), static, strict=True)
        ]
        if parts.count(-1) > 1 or parts[1] == -1:
            raise VerifyError(f"{describe(value)}: {dim} has dynamic parts on both sides")
        return middle[0] if len(middle) == 1 else Product(middle), parts

    def _index(self, dim: Dim) -> Node:
        """The index input for the kept positions along `dim`; dimensions with the same positions share one."""
        graph = self.gm.graph
        dim = coarse(dim, self.kept)
        if dim not in self.gathers:
            roles = dict.fromkeys(self.names.get(axis, "axis") for axis in dim.axes() if axis in self.kept)
            name = "_".join(["index", *roles])
            taken = {gather.placeholder for gather in self.gathers.values()}  # neurons_2 is the name of a role, too
            names = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
            with graph.inserting_after(self.last_side):
                node = graph.placeholder(next(each for each in names if each not in taken))
            length = dim.narrowed_size(self.kept)
            mode = next(n.meta["val"] for n in graph.nodes if has_tensor(n)).fake_mode
            with mode:
                node.meta["val"] = torch.empty(length, dtype=torch.int64, device=self._device())
            if self.last_birth is self.last_side:  # a layer without weights
                self.last_birth = node
            self.last_side = node
            self.gathers[dim] = tags.Gather(node.name, dim)
        name = self.gathers[dim].placeholder
        found: Node = next(n for n in graph.nodes if n.name == name)
        return found

    def _device(self) -> torch.device:
        device: torch.device = next(n.meta["val"] for n in self.gm.graph.nodes if has_tensor(n)).device
        return device

    # -- sizes ------------------------------------------------------------------------------------

    def _materialise(self, old: Any, dim: Dim) -> Any:
        """The size of a dimension that is a product of a dynamic and a narrowed part."""
        if isinstance(dim, Sum) or not isinstance(old, Node):
            raise VerifyError(f"the size {old} of {dim} cannot be computed for the narrowed graph")
        whole = dim.size
        narrowed = dim.narrowed_size(self.kept)
        graph = self.gm.graph
        assert self.anchor is not None
        divisor = gcd(whole, narrowed)
        with graph.inserting_before(self.anchor):
            product = graph.call_function(operator.mul, (old, narrowed // divisor))
            product.meta["val"] = old.meta["val"] * (narrowed // divisor)
            quotient = graph.call_function(operator.floordiv, (product, whole // divisor))
            quotient.meta["val"] = product.meta["val"] // (whole // divisor)
        return quotient


def _set_arguments(node: Node, old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Puts the named arguments into the node; returns whether any of them is another than before."""
    known = set(new) <= set(old)
    if known and all(new[name] == old[name] for name in new):
        return 0
    values = {**old, **new} if known else new
    args, kwargs = [], {}
    for argument in node.target._schema.arguments:  # type: ignore[union-attr]
        if not argument.kwarg_only:
            args.append(values[argument.name])
        elif values.get(argument.name) is not None:
            kwargs[argument.name] = values[argument.name]
    node.args, node.kwargs = tuple(args), kwargs
    return 1
