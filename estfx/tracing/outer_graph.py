"""The decoder around its layers as one graph, in which each layer is one `call_module`."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from estfx.errors import TraceError
from estfx.tracing.call_signature import flatten
from estfx.tracing.capture import without_cache
from estfx.tracing.layer_call import LayerCall

__all__ = ["trace_outer"]

_calls: list[LayerCall] = []  # the layers of the export in hand, by number


@dataclass(frozen=True)
class _Constant:
    value: Any


Given = tuple[list[_Constant | None], pytree.TreeSpec]  # the leaves of a call, None for each tensor


@torch.library.custom_op("estfx::layer", mutates_args=())
def _layer(tensors: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    """Stands for a layer while the outer graph is exported; never runs."""
    raise AssertionError("estfx::layer left in a graph")


@_layer.register_fake
def _(tensors: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    outputs = [x for x in _calls[number].outputs if isinstance(x, torch.Tensor)]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in outputs]


@contextmanager
def _opaque(calls: list[LayerCall]) -> Iterator[dict[int, Given]]:
    """Layers become calls of the stand-in. Gives the arguments of each call, which need not be those of the capture:
    while a model is exported, transformers makes every attention mask a tensor.
    """
    given: dict[int, Given] = {}

    def forward_of(numbers: list[int]) -> Any:
        turns = itertools.cycle(numbers)  # an export runs the model more than once

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = next(turns)
            call = calls[number]
            leaves, spec = flatten(args, kwargs)
            given[number] = ([None if isinstance(x, torch.Tensor) else _Constant(x) for x in leaves], spec)
            values = iter(torch.ops.estfx.layer([x for x in leaves if isinstance(x, torch.Tensor)], number))
            outputs = [next(values) if isinstance(x, torch.Tensor) else x for x in call.outputs]
            return pytree.tree_unflatten(outputs, call.out_spec)

        return forward

    _calls[:] = calls
    try:
        with ExitStack() as stack:
            numbers: dict[str, list[int]] = {}
            for number, call in enumerate(calls):
                numbers.setdefault(call.path, []).append(number)
            for own in numbers.values():
                stack.enter_context(_forward_is(calls[own[0]].module, forward_of(own)))
            yield given
    finally:
        _calls.clear()


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward on this one module; what stood there before, as accelerate's hooks do, comes back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def trace_outer(
    model: nn.Module, layers: Sequence[LayerCall], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> GraphModule:
    """Exports the model with its layers as opaque calls, to be called like the model on the example inputs.

    Sizes are those of the example inputs. A model that would fill a KV cache does not do so here.
    """
    calls = list(layers)
    added = {name: value for name, value in without_cache(model, kwargs).items() if name not in kwargs}
    forward = functools.partial(model.forward, **added) if added else model.forward
    try:
        with _opaque(calls) as given, _forward_is(model, forward), torch.enable_grad():
            exported = torch.export.export(model, args, kwargs, strict=False)
            gm = exported.module(check_guards=False)
    except Exception as error:
        raise TraceError(
            f"what lies around the layers of `{type(model).__name__}` cannot be exported as a graph: {error}"
        ) from error
    assert isinstance(gm, GraphModule)
    for node in list(gm.graph.nodes):
        if node.target is torch.ops.estfx.layer.default:
            number: Any = node.args[1]
            _insert_layer(gm, node, calls[number], given[number])
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def _insert_layer(gm: GraphModule, node: Node, call: LayerCall, given: Given) -> None:
    gm.add_submodule(call.path, call.module)
    constants, spec = given
    tensors = iter(node.args[0])  # type: ignore[arg-type]
    args, kwargs = pytree.tree_unflatten([next(tensors) if x is None else x.value for x in constants], spec)
    paths = [path for path, leaf in zip(_paths(call), call.outputs, strict=True) if isinstance(leaf, torch.Tensor)]
    with gm.graph.inserting_before(node):
        made = gm.graph.call_module(call.path, args, kwargs)
        made.meta["val"] = pytree.tree_unflatten(call.outputs, call.out_spec)
        for user in list(node.users):
            value, position = made, user.args[1]
            assert isinstance(position, int)
            for key in paths[position]:
                value = gm.graph.call_function(operator.getitem, (value, key))
            value.meta.setdefault("val", user.meta.get("val"))
            user.replace_all_uses_with(value)
            gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _paths(call: LayerCall) -> list[list[Any]]:
    """How each leaf of the layer's result is reached from it."""
    result = pytree.tree_unflatten(call.outputs, call.out_spec)
    pairs = pytree.tree_flatten_with_path(result, is_leaf=lambda x: x is None)[0]
    return [[getattr(key, "idx", getattr(key, "key", None)) for key in path] for path, _ in pairs]
