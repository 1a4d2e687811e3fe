"""A mount takes over a layer while the model trains: it skips the layer, or runs the program of its kind and stage.

The layer's class is swapped for a subclass of the same name, as `fully_shard` does it; its hooks, its checkpointing
and whatever wraps it stay. A skipped layer returns before any of its hooks run, or FSDP would gather its weights.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from estfx.programs import Kind, resolve
from estfx.signature import flatten, is_plain, signature_of
from estfx.structure import Changes, Snapshot, changes
from estfx.trace import ATTRIBUTE

if TYPE_CHECKING:
    from estfx.runtime import Runtime

__all__ = ["Mount", "is_mounted", "mount", "unmount"]

log = logging.getLogger(__name__)


@dataclass
class Mount:
    """What a mounted layer knows: its name, its kind, and the runtime that says what it runs."""

    name: str
    kind: Kind
    runtime: Runtime
    original_class: type[nn.Module]
    idle: bool = False  # while the layer itself is being looked at
    changed: Changes = frozenset()  # in the layer, since it was transformed
    _first: Snapshot | None = None
    _last: Snapshot | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Mount:
        """For a copy of the layer, of which the snapshots say nothing; they are taken when it is looked at."""
        twin = Mount(self.name, self.kind, copy.deepcopy(self.runtime, memo), self.original_class, self.idle)
        twin.changed, twin._first = self.changed, self._first
        return twin

    def look(self, layer: nn.Module) -> None:
        """Notices what was changed in the layer since it was transformed, such as adapters that were put into it."""
        if self._last is not None and self._last.same():
            return
        self._last = Snapshot(layer, self.name)
        if self._first is None:
            self._first = self._last
        self.changed = changes(self._first.structure, self._last.structure)

    def original(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.original_class.forward(layer, *args, **kwargs)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        before, self.idle = self.idle, True
        try:
            yield
        finally:
            self.idle = before

    def applies(self, layer: nn.Module) -> bool:
        return layer.training and not self.idle and not self.runtime.idle

    def skips(self) -> bool:
        return not self.runtime.runs(self.name)

    def skip(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
        """What the layer returns when it is passed over; None if the call is none that programs know."""
        leaves, _ = flatten(args, kwargs)
        if not all(map(is_plain, leaves)):
            return None
        traced = self.kind.first.traced
        return traced.skip(leaves[traced.stream_leaf])

    def run(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = flatten(args, kwargs)
        if not all(map(is_plain, leaves)):
            self.runtime.warn_once(
                "a layer was called with a KV cache or another object while training; it ran whole, uncompiled and "
                "as it is. Pass use_cache=False."
            )
            return self.original(layer, *args, **kwargs)
        paths, known = self._weights(layer)
        device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
        unread = self.kind.unread.get(spec, frozenset()) if self.kind.unread else frozenset()
        dtypes = tuple(weight.dtype for weight in known)
        signature = signature_of(leaves, spec, device.type, dtypes, self.changed, unread)
        variant = self.kind.variant(signature, leaves, spec, layer)
        program = self.runtime.program(self.kind, variant)
        weights = known if program.weights == paths else [resolve(layer, path) for path in program.weights]
        indices = self.runtime.indices(self.name, program, device)
        traced = variant.traced
        inputs = [leaves[i] for i in traced.input_leaves]
        factor = self.runtime.update_scale if variant.residuals.droppable else 1.0
        before = inputs[0].clone() if factor != 1.0 and variant.writes_in_place else inputs[0]
        values = program.call(*inputs, *indices, *weights)
        if factor != 1.0:
            values = (torch.lerp(before, values[0], factor), *values[1:])
        return traced.pack(values)

    def _weights(self, layer: nn.Module) -> tuple[tuple[str, ...], list[torch.Tensor]]:
        """The weights that tell signatures apart by their dtypes, and their paths; none for a structure that is new."""
        try:
            paths = self.kind.weight_paths.get(self.changed, ())
            return paths, [resolve(layer, path) for path in paths]
        except AttributeError:  # the layer was changed within a step
            self.look(layer)
            paths = self.kind.weight_paths.get(self.changed, ())
            return paths, [resolve(layer, path) for path in paths]


_mounted_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _mounted(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _mounted_classes:

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here: Mount = self.__dict__[ATTRIBUTE]
            if here.applies(self) and here.skips():
                passed = here.skip(args, kwargs)
                if passed is not None:
                    return passed
            return cls.__call__(self, *args, **kwargs)

        @functools.wraps(cls.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here: Mount = self.__dict__[ATTRIBUTE]
            if not here.applies(self):
                return cls.forward(self, *args, **kwargs)
            return here.run(self, args, kwargs)

        body = {"__call__": __call__, "forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__}
        made = type(cls.__name__, (cls,), body)
        made.__qualname__ = cls.__qualname__
        _mounted_classes[cls] = made
    return _mounted_classes[cls]


def mount(layer: nn.Module, name: str, kind: Kind, runtime: Runtime) -> None:
    here = Mount(name, kind, runtime, type(layer))
    layer.__dict__[ATTRIBUTE] = here
    layer.__class__ = _mounted(type(layer))
    here.look(layer)


def is_mounted(layer: nn.Module) -> bool:
    """Whether a layer is as `mount` left it."""
    here: Mount | None = layer.__dict__.get(ATTRIBUTE)
    return here is not None and type(layer) is _mounted_classes.get(here.original_class)


def unmount(layer: nn.Module) -> None:
    here: Mount = layer.__dict__.pop(ATTRIBUTE)
    layer.__class__ = here.original_class
