"""Notes which attributes modules read while they run: layers that differ in none of them run the same code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from estfx.stand_ins import stand_in_for

__all__ = ["Reads", "all_attributes", "recorded_reads"]

Reads = dict[str, dict[str, set[str]]]  # layer → path of a submodule in it → names


def all_attributes(layers: Mapping[str, nn.Module]) -> Reads:
    """Whatever each layer's submodules hold, where it cannot be noted what they read."""
    return {name: {path: _held_by(module) for path, module in layer.named_modules()} for name, layer in layers.items()}


def _held_by(module: nn.Module) -> set[str]:
    return {name for name in vars(module) if not name.startswith("_")}


@contextmanager
def recorded_reads(layers: Mapping[str, nn.Module]) -> Iterator[Reads]:
    """Which attributes each layer's submodules read within the block. One module in two layers counts for both."""
    reads: Reads = {}
    classes: dict[type, type] = {}
    sinks: dict[int, set[str]] = {}
    swapped: list[tuple[nn.Module, type]] = []

    def recording(cls: type) -> type:
        lookup: Any = cls.__getattribute__

        def __getattribute__(self: nn.Module, name: str) -> Any:
            if not name.startswith("_"):
                sink = sinks.get(id(self))
                if sink is not None:
                    sink.add(name)
            return lookup(self, name)

        return stand_in_for(cls, {"__getattribute__": __getattribute__})

    for name, layer in layers.items():
        for path, module in layer.named_modules():
            reads.setdefault(name, {})[path] = sinks.setdefault(id(module), set())
            if type(module) in classes.values():
                continue
            cls = type(module)
            try:
                module.__class__ = classes.setdefault(cls, recording(cls))
                swapped.append((module, cls))
            except TypeError:  # a class with its own layout, such as a scripted module: compare all it has
                sinks[id(module)].update(_held_by(module))
    try:
        yield reads
    finally:
        for module, cls in swapped:
            module.__class__ = cls
