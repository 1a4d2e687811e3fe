"""The oracles, run on each kind of layer when a model is transformed.

1. The whole layer's graph gives what the layer gives, values and gradients.
2. A narrowed graph gives, in float64, what the whole gives with its closing contractions masked at the dropped units
   and scaled by total / kept. Statistics over a narrowed dimension are taken over its kept part.
3. If all units of an axis are alike, a part of them, scaled, gives what the whole gives (`equal_units`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from estfx.axes import RESIZERS, Resize, entry
from estfx.errors import TraceError, VerifyError
from estfx.graphs import Axis, Dim, Sum, arguments, clone, has_tensor, promoted, run_passes, tags
from estfx.passes import specialisation
from estfx.programs.equal_units import differing_factor, halved
from estfx.programs.program import Variant, resolve
from estfx.programs.relative_errors import direction, worst_error
from estfx.tracing import HeldState, LayerCall, flatten, outcome, run_quietly

__all__ = ["ROUNDS", "masked_whole", "verify_kind"]

ROUNDS = "its whole graph differs from the layer by"
WHOLE_TOLERANCE = 1e-5  # beyond it, relative to the largest value, the graph is not the layer
ROUNDINGS = 4  # times the rounding of the graph itself: code in a smaller type, such as a long scan, rounds much more
MOST_ROUNDING = 1e-3  # relative
MASKED_TOLERANCE = 1e-10  # in float64, likewise
Tensors = list[torch.Tensor]


def verify_kind(variant: Variant, call: LayerCall) -> list[str]:
    """Runs both oracles on one layer; takes out the roles that fail, and returns notes in words."""
    if any(p.device.type == "meta" for p in call.module.parameters()):
        return ["not verified: its weights are on the meta device"]
    notes = _verify_whole(variant, call)
    inputs = _double_inputs(variant, call)
    roles = list(variant.roles.found)
    failure, narrowed = _verify_narrowed(variant, roles, inputs) if roles else ("", None)
    if failure:
        kept = []
        for role in roles:
            alone, narrowed = _verify_narrowed(variant, [role], inputs)
            if alone:
                notes.append(f"{role.name} ({role.axis.size}) stay whole: narrowing them failed verification ({alone})")
            else:
                kept.append(role)
        if len(kept) == len(roles):  # each is right alone, and together they are not
            notes.append(f"{', '.join(r.name for r in roles)} stay whole: narrowing them together failed ({failure})")
            kept = []
        roles, narrowed = kept, None
    # of a unit that stands for all others a ReLU may give nothing, and then a wrong factor of it does not show
    coupled = tags.get(variant.traced.graph, tags.Axes).coupled
    axes = [role.axis for role in roles]
    together = differing_factor(variant, axes, *inputs, narrowed=narrowed) if variant.scales else 0.0
    doubted = [role for role in roles if not together <= MASKED_TOLERANCE or role.axis in coupled]
    for role in doubted if variant.scales else ():
        if not (error := differing_factor(variant, [role.axis], *inputs)) <= MASKED_TOLERANCE:
            roles.remove(role)
            notes.append(
                f"{role.name} ({role.axis.size}) stay whole: with all of them alike, a part gives something else "
                f"than the whole (relative error {error:.1e}), as where the layer itself divides by what is kept"
            )
    # the others keep their names, by which a model that is not verified, or is cut, knows them too
    variant.roles = replace(variant.roles, found=tuple(roles))
    tags.put(variant.traced.graph, variant.roles)
    return notes


# -- oracle 1 ------------------------------------------------------------------------------------------------------


def _verify_whole(variant: Variant, call: LayerCall) -> list[str]:
    leaves, spec = flatten(call.args, call.kwargs)
    inputs = [leaves[i].detach().clone() for i in variant.traced.input_leaves]
    weights = [resolve(call.module, path) for _, path in tags.get(variant.traced.graph, tags.Interface).weights]

    given_by = {
        i: j for j, i in enumerate(variant.traced.outputs) if i is not None
    }  # of the graph's values, the leaves

    def layer(stream: torch.Tensor) -> Tensors:
        given = list(leaves)
        given[call.stream_leaf] = stream
        args, kwargs = pytree.tree_unflatten(given, spec)
        held = HeldState(call.module, args, kwargs)
        try:
            outputs, *_ = outcome(call.module.forward(*args, **kwargs), held.changes())
        finally:
            held.put_back()
        return [outputs[given_by[i]] for i in range(len(given_by))]

    def graph(stream: torch.Tensor) -> Tensors:
        return list(variant.traced.graph(stream, *inputs[1:], *weights))

    with run_quietly(call.module):
        want, got = (_values_and_gradients(f, inputs[0], weights) for f in (layer, graph))
    worst = worst_error(want, got)
    if worst > WHOLE_TOLERANCE and not worst <= ROUNDINGS * _rounding(variant, call, got):
        raise VerifyError(
            f"the graph of layer `{call.name}` does not compute what the layer does: relative error {worst:.2e}. "
            "Please report the model; transform(..., verify=False) would train something else."
        )
    return [f"{ROUNDS} {worst:.1e}, relative"] if worst > 0 else []


def _rounding(variant: Variant, call: LayerCall, got: tuple[Tensors, Tensors]) -> float:
    """The relative error of what a graph gave, against the same graph in float64; 0 if it is too large for rounding.

    It is where the graph draws random numbers.
    """
    (stream, *sides), weights = _double_inputs(variant, call)
    weights = [w.requires_grad_(w.is_floating_point()) for w in weights]
    graph = promoted(clone(variant.traced.graph))
    with run_quietly(call.module):
        exact = _values_and_gradients(lambda x: list(graph(x, *sides, *weights)), stream, weights)
    trained = [resolve(call.module, path) for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
    learns = [True, *(w.requires_grad for w in trained if w.is_floating_point())]
    gradients = [gradient for gradient, each in zip(exact[1], learns, strict=True) if each]
    single = [[t.double() if t.is_floating_point() else t for t in each] for each in got]
    found = worst_error((exact[0], gradients), (single[0], single[1]))
    return found if found <= MOST_ROUNDING else 0.0


def _values_and_gradients(
    function: Callable[[torch.Tensor], Sequence[torch.Tensor]], stream: torch.Tensor, weights: Tensors
) -> tuple[Tensors, Tensors]:
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stream = stream.detach().clone().requires_grad_()
        values = function(stream.clone())  # a layer may write into its stream, which it cannot into a leaf
        if not values[0].requires_grad:
            raise TraceError(
                "a layer gives a result that has no gradient: its model works out the backward pass by itself, as "
                "reversible layers do. Such a model cannot be trained in parts."
            )
        wanted = [stream, *(w for w in weights if w.requires_grad)]
        learnt = [value for value in values if value.requires_grad]
        grads = torch.autograd.grad(learnt, wanted, list(map(direction, learnt)), allow_unused=True)
    return [value.detach() for value in values], [torch.zeros(()) if g is None else g for g in grads]


# -- oracle 2 ------------------------------------------------------------------------------------------------------


def _double_inputs(variant: Variant, call: LayerCall) -> tuple[Tensors, Tensors]:
    leaves, _ = flatten(call.args, call.kwargs)
    inputs = [leaves[i] for i in variant.traced.input_leaves]
    weights = [resolve(call.module, path) for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
    double = [[t.detach().double() if t.is_floating_point() else t.detach() for t in ts] for ts in (inputs, weights)]
    return double[0], double[1]


def _verify_narrowed(
    variant: Variant, roles: list[tags.Role], inputs: tuple[Tensors, Tensors]
) -> tuple[str, GraphModule | None]:
    """What went wrong, or an empty string; and the narrowed graph, if it could be made."""
    kept = halved([role.axis for role in roles])
    rng = np.random.default_rng(0)
    units = {axis: np.sort(rng.permutation(axis.size)[:count]) for axis, count in kept.items()}
    try:
        narrowed = promoted(run_passes(clone(variant.traced.graph), specialisation(kept)))
        whole = promoted(clone(variant.traced.graph))
    except (VerifyError, RuntimeError) as error:
        return str(error).splitlines()[0], None
    device = inputs[0][0].device
    gathers = tags.get(narrowed, tags.Indices).gathers
    indices = [torch.from_numpy(gather.dim.flat_index(units)).to(device) for gather in gathers]
    sides, weights = inputs[0][1:], inputs[1]
    leaf_weights = [w.clone().requires_grad_(w.is_floating_point()) for w in weights]
    want = _values_and_gradients(
        lambda x: masked_whole(whole, units, [x, *sides, *leaf_weights]), inputs[0][0], leaf_weights
    )
    got = _values_and_gradients(lambda x: narrowed(x, *sides, *indices, *leaf_weights), inputs[0][0], leaf_weights)
    worst = worst_error(want, got)
    fits = worst <= MASKED_TOLERANCE  # which NaN is not
    return "" if fits else f"relative error {worst:.1e} against the masked whole in float64", narrowed


def masked_whole(gm: GraphModule, units: Mapping[Axis, np.ndarray], inputs: Tensors) -> tuple[torch.Tensor, ...]:
    """The whole graph's values with all but the kept units masked out where a contraction sums over them."""
    result: tuple[torch.Tensor, ...] = _Masked(gm, units).run(*inputs)
    return result


class _Masked(torch.fx.Interpreter):
    def __init__(self, gm: GraphModule, units: Mapping[Axis, np.ndarray]) -> None:
        super().__init__(gm)
        self.units = units
        self.axes = tags.get(gm, tags.Axes)
        self.closings: dict[str, list[tags.Closing]] = {}
        for closing in self.axes.closings:
            if self._touches(closing.dim):
                self.closings.setdefault(closing.node, []).append(closing)
        self.coupled = {name for axis, names in self.axes.coupled.items() if axis in units for name in names}

    def _touches(self, dim: Dim) -> bool:
        return any(axis in self.units for axis in dim.axes())

    def _index(self, dim: Dim, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(dim.flat_index(self.units)).to(device)

    def _mask(self, dim: Dim) -> np.ndarray:
        """`total / kept` at the kept positions along a dimension, 0 at the others, 1 where nothing is narrowed."""
        if isinstance(dim, Axis):
            mask = np.ones(dim.size)
            if dim in self.units:
                mask[:] = 0.0
                mask[self.units[dim]] = dim.size / len(self.units[dim])
            return mask
        if isinstance(dim, Sum):
            return np.concatenate([self._mask(term) for term in dim.terms])
        mask = reduce(np.multiply.outer, [self._mask(factor) for factor in dim.factors])
        return mask.reshape(-1)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What the layer leaves beside its result has zeros for the units that are dropped."""
        values = list(super().output(target, args, kwargs))
        nodes: Any = self.module.graph.output_node().args[0]  # type: ignore[union-attr, operator]
        for i in tags.get(self.module, tags.Interface).left:  # type: ignore[arg-type]
            for position, dim in enumerate(self.axes.dims[nodes[i].name]):
                if self._touches(dim):
                    values[i] = values[i] * _along(position, values[i], torch.from_numpy(self._mask(dim) != 0))
        return tuple(values)

    def run_node(self, n: Node) -> Any:
        if n.name in self.closings:
            return self._closed(n)
        if n.name in self.coupled:
            return self._coupled(n)
        return super().run_node(n)

    def _closed(self, node: Node) -> Any:
        a = {name: torch.fx.map_arg(value, lambda n: self.env[n]) for name, value in arguments(node).items()}
        for closing in self.closings[node.name]:
            name, item = tags.operand_named(closing.argument)
            operand = a[name] if item is None else a[name][item]
            masked = operand * _along(closing.position, operand, torch.from_numpy(self._mask(closing.dim)))
            if item is None:
                a[name] = masked
            else:
                a[name] = [masked if i == item else t for i, t in enumerate(a[name])]
        return _call(node, a)

    def _coupled(self, node: Node) -> Any:
        """The statistic over the kept part: take it, compute, and put the result back where it came from."""
        a = dict(arguments(node))
        kept = {axis: len(units) for axis, units in self.units.items()}
        if (resizer := entry(RESIZERS, node.target)) is not None:
            a.update(resizer(Resize(self.axes, kept, lambda old, dim: old), node, a))

        def part(source: Node) -> torch.Tensor:
            value: torch.Tensor = self.env[source]
            for position, dim in enumerate(self.axes.dims[source.name]):
                if self._touches(dim):
                    value = value.index_select(position, self._index(dim, value.device))
            return value

        a = {name: torch.fx.map_arg(v, lambda n: part(n) if has_tensor(n) else self.env[n]) for name, v in a.items()}
        value = _call(node, a)
        for position, dim in enumerate(self.axes.dims[node.name]):
            if self._touches(dim):
                size = list(value.shape)
                size[position] = dim.size
                value = value.new_zeros(size).index_copy(position, self._index(dim, value.device), value)
        return value


def _along(position: int, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask as a factor of a value along one of its dimensions."""
    shape = [1] * value.ndim
    shape[position] = -1
    return mask.to(value).reshape(shape)


def _call(node: Node, a: Mapping[str, Any]) -> Any:
    schema = node.target._schema  # type: ignore[union-attr]
    args = [a[x.name] for x in schema.arguments if not x.kwarg_only]
    kwargs = {x.name: a[x.name] for x in schema.arguments if x.kwarg_only}
    return node.target(*args, **kwargs)  # type: ignore[operator]
