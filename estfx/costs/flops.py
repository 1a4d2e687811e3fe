"""Counting FLOPs on meta tensors: matrix products and attention, causality ignored, forward and backward.

torch's own counter does the counting; on the meta device attention is made of matrix products, so none is missed
(on the CPU the counter sees nothing of the fused operator: pytorch#195460).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch.func import functional_call
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from estfx.graphs import opaque_flops, tags
from estfx.programs import numbers_at_work
from estfx.tracing import Decoder, LayerCall, NumbersHaveValues, call_arguments, flatten, without_cache

__all__ = ["Cost", "Surroundings", "flop_counter", "graph_cost", "measure_surroundings"]


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass."""

    flops_forward: int
    flops_backward: int
    parameters: Mapping[str, int]  # numbers of each weight that take part, by path
    activation_bytes: int  # kept for the backward pass when run uncompiled, parameters not counted

    @property
    def flops(self) -> int:
        return self.flops_forward + self.flops_backward


@dataclass(frozen=True)
class Surroundings:
    """What lies outside the layers, and the shapes with which the layers are called."""

    cost: Cost
    inputs: dict[str, list[torch.Tensor]]  # by layer, its tensor leaves' meta tensors in order


class _Saved:
    """Bytes that autograd keeps, each storage once."""

    def __init__(self, ignored: list[torch.Tensor]) -> None:
        self.bytes: dict[int, int] = {}
        self.ignored = {t.untyped_storage()._cdata for t in ignored}
        self.held: list[torch.Tensor] = []  # or a storage's address might be used twice

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored and storage._cdata not in self.bytes:
            self.bytes[storage._cdata] = storage.nbytes()
            self.held.append(tensor)
        return tensor


Formula = Callable[..., int]


def _grouped_product(one: torch.Size, other: torch.Size, *_: Any, **__: Any) -> int:
    """Of products of rows by groups, which torch's own counter does not know; as if every row were in a group."""
    return 2 * one[-2] * one[-1] * other[-1]


def _grouped_product_backward(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Of both gradients, of the rows and of the weights."""
    return 2 * _grouped_product(x, weight)


def _of_one_expert(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Costs what the rows do in all groups; the backward pass of transformers 5.17 would loop over the groups' ends."""
    return x @ weight[0]


def _convolution_backward(
    grad: torch.Size, x: torch.Size, weight: torch.Size, *options: Any, out_shape: Any = None, **_: Any
) -> int:
    """Each of both gradients costs what the forward pass does; torch's formula knows nothing of groups."""
    _, _, _, _, transposed, _, _, wanted = options
    one = 2 * grad[0] * prod((x if transposed else grad)[2:]) * prod(weight)
    return one * (bool(wanted[0]) + bool(wanted[1]))


def flop_counter() -> FlopCounterMode:
    formulas: dict[Any, Formula] = {
        torch.ops.aten._grouped_mm: _grouped_product,
        torch.ops.aten.convolution_backward: _convolution_backward,
        torch.ops.estfx.opaque_module: opaque_flops,
        torch.ops.estfx.opaque_module_backward: lambda *given, **_: 2 * opaque_flops(*given),  # of both gradients
    }
    own = torch.ops.transformers  # what transformers registers, if it was imported; not all versions have both
    for name, formula in (
        ("grouped_mm_fallback", _grouped_product),
        ("grouped_mm_fallback_backward", _grouped_product_backward),
    ):
        if hasattr(own, name):
            formulas[getattr(own, name)] = formula
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _cost(function: Any, weights: dict[str, torch.Tensor]) -> Cost:
    saved = _Saved(list(weights.values()))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        with flop_counter() as forward:
            result = function()
        leaves = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor) and x.requires_grad]
        with flop_counter() as backward:
            torch.autograd.backward(leaves, [torch.ones_like(x) for x in leaves])
    return Cost(
        forward.get_total_flops(),
        backward.get_total_flops(),
        {path: weight.numel() for path, weight in weights.items()},
        sum(saved.bytes.values()),
    )


def _meta(tensor: torch.Tensor, grad: bool = False) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return made.requires_grad_() if grad and tensor.is_floating_point() else made


def graph_cost(gm: GraphModule, inputs: list[torch.Tensor]) -> Cost:
    """What a layer graph costs on a stream and sides of those shapes, with weights and indices as in its own."""
    nodes = {n.name: n for n in gm.graph.nodes if n.op == "placeholder"}
    interface = tags.get(gm, tags.Interface)
    indices = tags.get(gm, tags.Indices, tags.Indices())
    index_inputs = [_meta(nodes[gather.placeholder].meta["val"]) for gather in indices.gathers]
    weights = {path: _meta(nodes[name].meta["val"], grad=True) for name, path in interface.weights}
    stream, *sides = (_meta(x) for x in inputs)
    moved = _on_meta(gm)
    inputs = [stream.requires_grad_(), *sides, *index_inputs, *weights.values()]
    cost = _cost(lambda: moved(*inputs), weights)
    return replace(cost, parameters=numbers_at_work(gm))


def _on_meta(gm: GraphModule) -> GraphModule:
    """The graph with its factories and constants on the meta device."""
    from estfx.graphs import clone

    moved = clone(gm)
    for node in moved.graph.nodes:
        if node.op == "call_function":
            if str(node.target) == "transformers.grouped_mm_fallback.default":
                node.target = _of_one_expert
            node.kwargs = {
                k: torch.device("meta") if isinstance(v, torch.device) else v for k, v in node.kwargs.items()
            }
            node.args = pytree.tree_map(
                lambda v: torch.device("meta") if isinstance(v, torch.device) else v,
                node.args,
                is_leaf=lambda v: isinstance(v, torch.fx.Node),
            )
        elif node.op == "get_attr":
            setattr(moved, node.target, getattr(moved, node.target).to("meta"))
    moved.recompile()
    return moved


@contextmanager
def _passing_layers(decoder: Decoder, seen: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """Layers hand on their stream, and note the shapes with which they are called."""

    def forward_of(names: list[str]) -> Any:
        turns = itertools.cycle(names)

        def forward(*args: Any, **kwargs: Any) -> Any:
            name = next(turns)
            traced = decoder.traced[decoder.layers[name]]
            leaves, _ = flatten(args, kwargs)
            seen[name] = [leaves[i] for i in traced.input_leaves]
            return traced.give(leaves[traced.stream_leaf])

        return forward

    calls: dict[str, list[LayerCall]] = {}
    for info in decoder.infos.values():
        calls.setdefault(info.call.path, []).append(info.call)
    for own in calls.values():
        own[0].module.__dict__["forward"] = forward_of([call.name for call in own])
    try:
        yield
    finally:
        for own in calls.values():
            del own[0].module.__dict__["forward"]


def measure_surroundings(decoder: Decoder, example_inputs: object) -> Surroundings:
    """Runs the model on meta tensors of the example's shapes, with its layers passed over."""
    model = decoder.model
    state = {name: _meta(p, grad=True) for name, p in model.named_parameters()}
    state |= {name: _meta(b) for name, b in model.named_buffers()}
    tied = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    inside = {id(p) for info in decoder.infos.values() for p in info.call.module.parameters()}
    outside = {tied[id(p)]: state[tied[id(p)]] for p in model.parameters() if id(p) not in inside}
    args, inputs = pytree.tree_map_only(torch.Tensor, _meta, call_arguments(model, example_inputs))
    seen: dict[str, list[torch.Tensor]] = {}
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()  # mounts stay out of the way
        with _passing_layers(decoder, seen), NumbersHaveValues():
            kwargs = without_cache(model, inputs)
            cost = _cost(lambda: functional_call(model, state, args, kwargs, tie_weights=True), outside)
    finally:
        for module, training in flags.items():
            module.training = training
    return Surroundings(cost, seen)
