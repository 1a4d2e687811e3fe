"""A mount takes over a layer while the model trains: it skips the layer, or runs the program of its kind and stage.

The layer's class is swapped for a subclass of the same name, as `fully_shard` does it; its hooks, its checkpointing
and whatever wraps it stay. A skipped layer returns before any of its hooks run, or FSDP would gather its weights.

A module that the model calls more than once in a forward has one mount, which counts the calls: each is a layer of its
own. A recomputation under activation checkpointing happens within the backward pass, and is not counted. It repeats a
call that ran; only reentrant checkpointing around a layer computes the skipped ones again, too.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError
from estfx.programs import Kind, resolve
from estfx.runtime.output_recorders import tell_recorders
from estfx.runtime.runtime import Runtime
from estfx.stand_ins import as_original, checkpointed, stand_in_for
from estfx.tracing import (
    ATTRIBUTE,
    Changes,
    Signature,
    Snapshot,
    call_key,
    changes,
    flatten,
    is_plain,
    prefixes,
    signature_of,
    without_empty_caches,
)

__all__ = ["Call", "Mount", "is_mounted", "mount", "unmount"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One of the calls of a layer's module: its name as a layer, and its kind."""

    name: str
    kind: Kind


@dataclass
class Mount:
    """What a mounted layer knows: its calls in one forward, and the runtime that says what they run."""

    path: str
    calls: tuple[Call, ...]
    runtime: Runtime
    original_class: type[nn.Module]
    idle: bool = False  # while the layer itself is being looked at
    own_forward: Callable[..., Any] | None = None  # that the layer itself had, and not its class
    entered: Call | None = None  # the call at work
    came_in: bool = False  # whether the last call has come to what was mounted
    changed: Changes = frozenset()  # in the layer, since it was transformed
    _around: Changes = frozenset()
    _stands: bool = False
    _first: Snapshot | None = None
    _last: Snapshot | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Mount:
        """For a copy of the layer, of which the snapshots say nothing; they are taken when it is looked at."""
        twin = Mount(self.path, self.calls, copy.deepcopy(self.runtime, memo), self.original_class, self.idle)
        twin.changed, twin._first = self.changed, self._first
        twin.own_forward = copy.deepcopy(self.own_forward, memo)
        return twin

    def stands(self) -> bool:
        """Whether the layer stands as it stood when it was looked at last."""
        self._stands = self._last is not None and self._last.same()
        return self._stands

    def look(self, layer: nn.Module, around: Changes | None = None) -> None:
        """Notices what was changed in the layer since it was transformed, such as adapters that were put into it.

        `around`: what was changed around it; None if that is not looked at.
        """
        around = self._around if around is None else around
        if self._stands and around is self._around:
            return
        self._around = around
        if not self._stands or self._last is None:
            self._last = Snapshot(layer, self.path, self.left)
            if self._last.trains_in_part:
                self.runtime.warn_once(
                    f"layer `{self.path}` is in training mode and a module in it is in eval mode. The layer's graph "
                    "runs all of it in training mode, dropout included. Put the whole layer into eval mode to have it "
                    "run as it is, or set the module's dropout to 0."
                )
        if self._first is None:
            self._first = self._last
        self.changed = changes(self._first.structure, self._last.structure) | around

    @cached_property
    def left(self) -> frozenset[str]:
        """The layer's attributes in which it leaves values beside its result."""
        return prefixes(place for call in self.calls for place in call.kind.first.traced.written)

    def original(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.own_forward is not None:
            return self.own_forward(*args, **kwargs)
        return self.original_class.forward(layer, *args, **kwargs)

    def refuse_another_forward(self) -> None:
        """Raises EstfxError for a layer whose call did not come to what was mounted."""
        raise EstfxError(
            f"layer `{self.path}` was given another `forward` after transform, which does not call the one that was "
            "there: all of the layer ran, although a part of it was drawn. Call estfx.restore(model), set the forward, "
            "and transform the model then."
        )

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        before, self.idle = self.idle, True
        try:
            yield
        finally:
            self.idle = before

    def applies(self, layer: nn.Module) -> bool:
        return layer.training and not self.idle and not self.runtime.idle

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], layer: nn.Module) -> Call:
        """Which call this is."""
        if in_backward():
            self.runtime.require_step_of_forward()
            return self.repeated(args, kwargs, layer)
        return self.calls[self.runtime.next_call(self.path, len(self.calls))]

    def repeated(self, args: tuple[Any, ...], kwargs: dict[str, Any], layer: nn.Module) -> Call:
        """The call that a recomputation repeats: any that ran and knows these arguments, as calls share their units."""
        ran = [call for call in self.calls if self.runtime.runs(call.name)] or list(self.calls)  # or all were skipped
        leaves, spec = flatten(args, kwargs)
        for call in ran if len({id(call.kind) for call in ran}) > 1 else ():
            device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
            dtypes = tuple(weight.dtype for weight in self._weights(call, layer).values())
            if call.kind.knows(self._signature(call, leaves, spec, device.type, dtypes), leaves):
                return call
        return ran[0]

    def refuse_unknown_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises EstfxError for a reentrant recomputation, if some of the calls ran and others were skipped."""
        if len({self.runtime.runs(call.name) for call in self.calls}) < 2:
            return
        stream = flatten(args, kwargs)[0][self.calls[0].kind.first.traced.stream_leaf]
        if stream.requires_grad and stream.grad_fn is None:  # it hands over detached tensors
            raise EstfxError(
                f"layer `{self.path}` is called {len(self.calls)} times in a forward, of which some are skipped, and "
                "reentrant activation checkpointing does not tell which of them it computes again. Pass "
                "use_reentrant=False to torch.utils.checkpoint.checkpoint."
            )

    def skips(self, call: Call) -> bool:
        return not self.runtime.runs(call.name)

    def skip(self, call: Call, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
        """What the layer returns when it is passed over; None if the call is none that programs know."""
        leaves, _ = flatten(args, kwargs)
        if not all(map(is_plain, leaves)):
            return None
        call.kind.first.traced.leave_zeros(leaves, layer, args, kwargs)
        return call.kind.first.passed_over(leaves)

    def run(self, call: Call, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = flatten(args, kwargs)
        if not all(map(is_plain, leaves)):
            self.runtime.warn_once(
                "a layer was called with a KV cache or another object while training; it ran whole, uncompiled and "
                "as it is, so that nothing was saved. Pass use_cache=False."
            )
            return self.original(layer, *args, **kwargs)
        known = self._weights(call, layer)
        device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
        dtypes = tuple(weight.dtype for weight in known.values())
        key = call_key(leaves, spec, device.type, dtypes, self.changed)
        variant = call.kind.by_call.get(key)
        if variant is None:
            signature = self._signature(call, leaves, spec, device.type, dtypes)
            variant = call.kind.variant(signature, leaves, spec, layer)
            if key is not None:
                call.kind.remember(key, variant)
        program = self.runtime.program(call.name, variant)
        weights = [known[path] if path in known else resolve(layer, path) for path in program.weights]
        indices = self.runtime.indices(call.name, program, device)
        traced = variant.traced
        inputs = [leaves[i] for i in traced.input_leaves]
        factor = self.runtime.update_scale if variant.residuals.droppable else 1.0
        before = inputs[0].clone() if factor != 1.0 and variant.writes_in_place else inputs[0]
        values = program.call(*inputs, *indices, *weights)
        if factor != 1.0:
            scaled = values[0] * factor if variant.residuals.outside else torch.lerp(before, values[0], factor)
            values = (scaled, *values[1:])
        return traced.pack(values, layer, args, kwargs)

    def _signature(
        self, call: Call, leaves: list[Any], spec: pytree.TreeSpec, device: str, dtypes: tuple[torch.dtype, ...]
    ) -> Signature:
        unread = call.kind.unread.get(spec, frozenset()) if call.kind.unread else frozenset()
        return signature_of(leaves, spec, device, dtypes, self.changed, unread)

    def _weights(self, call: Call, layer: nn.Module) -> dict[str, torch.Tensor]:
        """The weights whose dtypes are in a signature; none for a structure that is new."""
        try:
            return self._found(call, layer)
        except AttributeError:  # the layer was changed within a step
            self.stands()
            self.look(layer)
            return self._found(call, layer)

    def _found(self, call: Call, layer: nn.Module) -> dict[str, torch.Tensor]:
        return {path: resolve(layer, path) for path in call.kind.weight_paths.get(self.changed, ())}


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


_mounted_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _mounted(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _mounted_classes:

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here: Mount = self.__dict__[ATTRIBUTE]
            if not here.applies(self):
                return cls.__call__(self, *args, **kwargs)
            if here.runtime.discards_caches or not here.runtime.in_forward:  # a part of the model called by itself
                args, kwargs = without_empty_caches(self, args, kwargs)
            if in_backward():
                here.refuse_unknown_call(args, kwargs)
            call = here.begin(args, kwargs, self)
            if here.skips(call):
                passed = here.skip(call, self, args, kwargs)
                if passed is not None:
                    tell_recorders(self, args, passed)
                    return passed
            before, here.entered, here.came_in = here.entered, call, False
            try:
                result = cls.__call__(self, *args, **kwargs)
            finally:
                here.entered = before
            if not here.came_in:
                here.refuse_another_forward()
            return result

        @functools.wraps(cls.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here: Mount = self.__dict__[ATTRIBUTE]
            here.came_in = True
            if not here.applies(self):
                return here.original(self, *args, **kwargs)
            call = here.entered or here.begin(args, kwargs, self)  # a recomputation may come in here, past __call__
            return here.run(call, self, args, kwargs)

        def __reduce_ex__(self: nn.Module, protocol: object) -> tuple[Any, ...]:
            here: Mount = self.__dict__[ATTRIBUTE]
            own = {} if here.own_forward is None else {"forward": here.own_forward}
            return as_original(self, ATTRIBUTE, **own)

        body = {"__call__": __call__, "forward": forward, "__reduce_ex__": __reduce_ex__}
        _mounted_classes[cls] = checkpointed(stand_in_for(cls, body))
    return _mounted_classes[cls]


def mount(layer: nn.Module, path: str, calls: Sequence[Call], runtime: Runtime) -> None:
    own_forward = layer.__dict__.pop("forward", None)  # one that was set on the instance hides that of any class
    here = Mount(path, tuple(calls), runtime, type(layer), own_forward=own_forward)
    layer.__dict__[ATTRIBUTE] = here
    layer.__class__ = _mounted(type(layer))
    here.look(layer)


def is_mounted(layer: nn.Module) -> bool:
    """Whether a layer is as `mount` left it."""
    here = layer.__dict__.get(ATTRIBUTE)
    return isinstance(here, Mount) and type(layer) is _mounted_classes.get(here.original_class)


def unmount(layer: nn.Module) -> None:
    here: Mount = layer.__dict__.pop(ATTRIBUTE)
    layer.__class__ = here.original_class
    if here.own_forward is not None and "forward" not in layer.__dict__:
        layer.__dict__["forward"] = here.own_forward
