"""Graphs of layers that are traced once in a process, for tests that are about what comes after.

Most of the time that `transform` takes is torch.export's. Tests of the runtime, of trainers and of commands transform
the same tiny decoders again and again. With `shared_traces` in force, a layer that is the same in everything that a
trace may depend on is given a copy of the graph that was made first. Tests of tracing, of the axes, of the passes and
of programs run without it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from estfx import transformation
from estfx.axes import RULES
from estfx.graphs import Pass, autocast_state, clone, run_passes, tags
from estfx.mounting import Found, verified
from estfx.programs import Variant, layer_kind, program, verify_kind
from estfx.runtime import Runtime
from estfx.tracing import ATTRIBUTE, LayerCall, TracedLayer, decoder, trace_call

_traces: dict[Hashable, TracedLayer] = {}
_passed: dict[Hashable, GraphModule] = {}
_verified: dict[Hashable, tuple[list[str], tags.Roles]] = {}
_whole: set[Hashable] = set()
_alive: list[object] = []  # what is told by its identity stays, so that no other object has the same
ORIGIN = "shared trace"  # in a graph's meta: which trace it was made from
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OF_TORCH = set(vars(nn.Module()))


class _NotShared(Exception):
    """Something that no other layer can be known to have alike."""


@contextmanager
def shared_traces() -> Iterator[None]:
    """Within it, layers that are alike in everything share a trace, and what passes and oracles made of it."""
    with ExitStack() as stack:
        for owner, name, made in (
            (decoder, "trace_call", _trace_once),
            (layer_kind, "trace_call", _trace_once),
            (program, "run_passes", _pass_once),
            (transformation, "verify_kind", _verify_once),
            (transformation, "verified", _verified_once),
        ):
            stack.enter_context(mock.patch.object(owner, name, made))
        yield


def _trace_once(call: LayerCall) -> TracedLayer:
    try:
        key = _key(call)
    except _NotShared:
        return trace_call(call)
    if key not in _traces:
        made = trace_call(call)
        made.graph.meta[ORIGIN] = len(_traces)
        _traces[key] = replace(made, graph=clone(made.graph))
        return made
    return replace(_traces[key], graph=clone(_traces[key].graph))


def _pass_once(gm: GraphModule, passes: Sequence[Pass]) -> GraphModule:
    if ORIGIN not in gm.meta:
        return run_passes(gm, passes)
    rules = tuple(map(id, RULES.values()))  # of which a test may have registered one
    key = (gm.meta[ORIGIN], repr(gm.meta.get(tags.Roles.__qualname__)), repr(passes), rules)
    if key not in _passed:
        made = run_passes(gm, passes)
        _passed[key] = clone(made)
        return made
    known = clone(_passed[key])
    gm.graph, gm.meta = known.graph, known.meta
    return gm


def _verify_once(variant: Variant, call: LayerCall) -> list[str]:
    if ORIGIN not in variant.traced.graph.meta:
        return verify_kind(variant, call)
    key = (variant.traced.graph.meta[ORIGIN], variant.roles, variant.scales, tuple(map(id, RULES.values())))
    if key not in _verified:
        _verified[key] = verify_kind(variant, call), variant.roles
    notes, variant.roles = _verified[key]
    tags.put(variant.traced.graph, variant.roles)
    return list(notes)


def _verified_once(model: nn.Module, found: Found, mounted: Callable[[], Runtime], example_inputs: object) -> Runtime:
    """The whole model is its own oracle once for each class with the same graphs under the same names."""
    graphs = {name: layer.graph.meta.get(ORIGIN) for name, layer in found.decoder.traced.items()}
    meta = any(parameter.device.type == "meta" for parameter in model.parameters())
    if None in graphs.values() or meta or found.decoder.left:
        return verified(model, found, mounted, example_inputs)
    told = (type(model), tuple(graphs.items()), tuple(found.decoder.layers.items()))
    if told in _whole:
        return mounted()
    runtime = verified(model, found, mounted, example_inputs)
    if not found.whole and not found.decoder.left:
        _whole.add(told)
    return runtime


def _key(call: LayerCall) -> Hashable:
    seen: dict[int, int] = {}  # tensors by identity: which are one and the same
    modules = tuple((path, type(part), _state(part, seen)) for path, part in call.module.named_modules())
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    given = (str(spec), tuple(_value(leaf, seen) for leaf in leaves))
    outputs = (str(call.out_spec), tuple(_value(leaf, seen) for leaf in call.outputs))
    others = (call.stream_leaf, call.stream_output, frozenset(call.alive), call.written, call.operations, call.added)
    around = (autocast_state("cpu"), torch.get_default_dtype())
    return (modules, given, outputs, others, around)


def _state(module: nn.Module, seen: dict[int, int]) -> Hashable:
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise _NotShared
    tensors = {**module._parameters, **module._buffers}
    own = {name: value for name, value in vars(module).items() if name not in OF_TORCH and name != ATTRIBUTE}
    if any(isinstance(value, torch.Tensor) for value in own.values()):
        raise _NotShared
    return (
        module.training,
        tuple((name, type(tensor), _value(tensor, seen)) for name, tensor in tensors.items()),
        tuple((name, _value(value, seen)) for name, value in own.items()),
    )


def _value(value: Any, seen: dict[int, int]) -> Hashable:
    if isinstance(value, torch.Tensor):
        same = seen.setdefault(id(value), len(seen))
        return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad, same)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, enum.Enum)):
        return (type(value), value)
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(_value(each, seen) for each in value))
    if isinstance(value, dict):
        return (type(value), tuple((_value(k, seen), _value(v, seen)) for k, v in value.items()))
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):  # a configuration of transformers
        return (type(value), tuple((name, _value(each, seen)) for name, each in sorted(vars(value).items())))
    if isinstance(value, functools.partial):
        return (_value(value.func, seen), _value(value.args, seen), _value(value.keywords, seen))
    _alive.append(value)
    return (type(value), id(value))
