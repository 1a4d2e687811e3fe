"""Watches a model run: which candidates for layers it calls, with what, and which calls keep a stream's shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from estfx.tracing.call_signature import flatten
from estfx.tracing.effects import Change, HeldState, Place
from estfx.tracing.kv_caches import without_empty_caches
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.opened_types import open_dataclasses, open_mappings

__all__ = [
    "ASKING",
    "Observed",
    "Recording",
    "assume_all_is_read",
    "compiled_parts",
    "outcome",
    "recorded_calls",
    "settle_streams",
]


State = dict[str, dict[str, Any]]  # by submodule, its attributes that are plain values


def _state(module: nn.Module) -> State:
    plain = (bool, int, float, str, tuple, type(None))
    return {
        path: {name: value for name, value in vars(part).items() if isinstance(value, plain)}
        for path, part in module.named_modules()
    }


@dataclass
class Observed:
    """One call of a candidate. `call` is None if no stream of it keeps its shape."""

    path: str
    within: tuple[str, ...]  # the candidates whose calls it was made in, outermost first
    state: State  # when it began
    arguments: tuple[list[Any], pytree.TreeSpec]  # of (args, kwargs), before the call could write into them
    operations: int  # how many functions of torch had been called when it began
    held: HeldState | None  # what it could reach when it began; None once it has ended
    call: LayerCall | None = None


@dataclass
class Recording:
    """What was seen of the candidates while the model ran once."""

    candidates: Mapping[str, nn.Module]
    calls: list[Observed]  # in the order in which they were made


def _stream_leaves(
    inputs: list[Any], outputs: list[Any], any_output: bool, given: Collection[int] = ()
) -> tuple[int, int] | None:
    """(input leaf, output leaf) of the stream: of the first tensor of the result, or of `any_output` that will do.

    Of several inputs of that shape it is the one that another layer has given; `given` holds the ids of such tensors.
    """
    for j, out in enumerate(outputs):
        if isinstance(out, torch.Tensor):
            if out.is_floating_point() and out.ndim >= 2:
                alike = [i for i, leaf in enumerate(inputs) if _is_float_of(leaf, out.shape)]
                if alike:
                    return next((i for i in alike if id(inputs[i]) in given), alike[0]), j
            if not any_output:
                return None
    return None


def _is_float_of(leaf: object, shape: torch.Size) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.shape == shape


def settle_streams(recording: Recording) -> None:
    """The first layer is given what no other has given: its stream is where those of its class have theirs."""
    places: dict[Any, list[tuple[LayerCall, list[Any]]]] = {}
    for observed in recording.calls:
        if (call := observed.call) is not None:
            leaves, spec = observed.arguments
            places.setdefault((type(call.module), id(spec), call.stream_output), []).append((call, leaves))
    for calls in places.values():
        last = calls[-1][0].stream_leaf
        for call, leaves in calls:
            if _is_float_of(leaves[last], call.outputs[call.stream_output].shape):
                call.stream_leaf = last


def outcome(result: Any, changes: Sequence[Change]) -> tuple[list[Any], pytree.TreeSpec, tuple[Place, ...]]:
    """The leaves of what a call gave and of what it left elsewhere, their structure, and where it left it."""
    kept = [change for change in changes if not change.reason]
    outputs, out_spec = pytree.tree_flatten((result, [change.value for change in kept]) if kept else result)
    return outputs, out_spec, tuple(change.place for change in kept)


# What asks a tensor for something that is not among its values.
ASKING = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__,
    torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
}
# What gives zero where its first argument is zero.
LINEAR = {
    torch.nn.functional.dropout,
    torch.dropout,
    torch.mul,
    torch.Tensor.mul,
    torch.Tensor.__mul__,
    torch.Tensor.__rmul__,
    torch.Tensor.div,
    torch.Tensor.__truediv__,
    torch.Tensor.to,
    torch.Tensor.type_as,
    torch.Tensor.contiguous,
}
ADDING = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
ADDING |= {torch.Tensor.add_, torch.Tensor.__iadd__}  # of which the first argument is no stream


class _Watch(TorchFunctionMode):
    """Notes which of the watched tensors any operation reads, and of which streams there is no use but to be added."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[torch.Tensor, LayerCall, int]] = {}
        self.streams: dict[int, tuple[torch.Tensor, LayerCall]] = {}  # what calls gave, and multiples of it
        self.read_otherwise: set[int] = set()  # calls whose stream was not only added
        self.operations = 0

    def begin(self, call: LayerCall) -> None:
        stream = call.outputs[call.stream_output]
        for position, leaf in enumerate(call.outputs):
            if isinstance(leaf, torch.Tensor) and leaf is not stream:
                self.watched[id(leaf)] = (leaf, call, position)
        self.streams[id(stream)] = (stream, call)

    def read(self, tree: object) -> None:
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and id(leaf) in self.watched:
                _, call, position = self.watched[id(leaf)]
                call.alive.add(position)
            if isinstance(leaf, torch.Tensor) and id(leaf) in self.streams:
                _, call = self.streams[id(leaf)]
                call.added = False
                self.read_otherwise.add(id(call))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # the body of a loop or a branch, which must have no side effects
            return func(*args, **kwargs)
        self.operations += 1
        if func in ASKING:
            return func(*args, **kwargs)
        if func in LINEAR and args and id(args[0]) in self.streams:
            _, call = self.streams[id(args[0])]
            self.read((args[1:], kwargs))
            result = func(*args, **kwargs)
            self.streams[id(result)] = (result, call)
            return result
        if func in ADDING and len(streams := [x for x in args[:2] if id(x) in self.streams]) == 1:
            _, call = self.streams[id(streams[0])]
            call.added = id(call) not in self.read_otherwise
            self.read(([x for x in args if x is not streams[0]], kwargs))
        elif self.watched or self.streams:
            self.read((args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def compiled_parts() -> Iterator[list[object]]:
    """What is given to torch.compile within the block, as loops and branches are (`torch.cond`, `scan`)."""
    found: list[object] = []
    original = torch.compile

    def noting(model: Any = None, **options: Any) -> Any:
        found.append(model)
        return original(model, **options)

    with mock.patch.object(torch, "compile", noting):
        yield found


def assume_all_is_read(recording: Recording) -> None:
    """For a model with compiled parts, in which it is not seen what they read."""
    for observed in recording.calls:
        if (call := observed.call) is not None:
            call.added = False
            call.alive |= {i for i, leaf in enumerate(call.outputs) if isinstance(leaf, torch.Tensor)}
            call.alive.discard(call.stream_output)


@contextmanager
def recorded_calls(
    candidates: Mapping[str, nn.Module], any_output: bool = False, discards_caches: bool = True
) -> Iterator[tuple[Recording, _Watch]]:
    """Records every call of the candidates within the block; what the model returns is to be given to the watch.

    With `any_output` the stream need not be the first tensor that a call returns. With `discards_caches` empty KV
    caches are taken out of the calls, as while training.
    """
    recording = Recording(candidates, [])
    watch = _Watch()
    running: list[Observed] = []

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if discards_caches:
                args, kwargs = without_empty_caches(module, args, kwargs)
            watch.read((args, kwargs))
            open_mappings(args, kwargs)
            within = tuple(outer.path for outer in running)
            held = HeldState(module, args, kwargs)
            running.append(Observed(path, within, _state(module), flatten(args, kwargs), watch.operations, held))
            recording.calls.append(running[-1])
            return args, kwargs

        return hook

    def leave(path: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            while (observed := running.pop()).path != path:
                pass  # a call that ended in an exception, which the model caught
            open_dataclasses(result)
            leaves, spec = observed.arguments
            before = pytree.tree_unflatten(leaves, spec)
            given = {key for key, (_, call) in watch.streams.items() if call.path != path}
            stream = _stream_leaves(leaves, pytree.tree_leaves(result), any_output, given)
            changes, observed.held = observed.held.changes() if observed.held else [], None
            if stream is not None:
                outputs, out_spec, written = outcome(result, changes)
                observed.call = LayerCall(
                    path,
                    module,
                    before[0],
                    before[1],
                    stream[0],
                    out_spec,
                    outputs,
                    stream[1],
                    written=written,
                    lost=tuple(change.reason for change in changes if change.reason),
                    operations=watch.operations - observed.operations,
                )
                watch.begin(observed.call)

        return hook

    with ExitStack() as stack:
        for path, module in candidates.items():
            for handle in (
                module.register_forward_pre_hook(enter(path), with_kwargs=True),
                module.register_forward_hook(leave(path, module), with_kwargs=True),
            ):
                stack.callback(handle.remove)
        stack.enter_context(watch)
        yield recording, watch
        settle_streams(recording)
