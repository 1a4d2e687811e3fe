"""What a layer keeps from one call to the next, which its graph would lose or would compute on a part of its units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.fx import Graph, Node

from estfx.graphs import describe, memory_of, writes

__all__ = ["Watch", "changed_buffers"]

PLAIN = (bool, int, float, str)
FLAGS = {"training", "gradient_checkpointing"}


def changed_buffers(graph: Graph, paths: dict[Node, str]) -> dict[str, str]:
    """The buffers that the graph writes to, by path, and where it does so.

    A parameter may be written, such as one clipped by `weight.data.clamp_`: it stays whole, and the graph writes it.
    """
    found: dict[str, str] = {}
    for node in graph.nodes:
        if writes(node) and (base := memory_of(node)) in paths:
            found.setdefault(paths[base], describe(node))
    return found


class Watch:
    """Notes which buffers, plain numbers and texts of a layer are set to something else while its code runs.

    A buffer that is written in place is not among them.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []

    @contextmanager
    def over(self, layer: nn.Module) -> Iterator[None]:
        before = dict(_held(layer))
        yield
        for (path, name), value in _held(layer):
            old = before.get((path, name))
            if value is not old if isinstance(value, torch.Tensor) else value != old:
                self.changed.append(f"{path}.{name}" if path else name)


def _held(layer: nn.Module) -> Iterator[tuple[tuple[str, str], object]]:
    for path, module in layer.named_modules():
        for name, buffer in module._buffers.items():
            yield (path, name), buffer
        for name, value in vars(module).items():
            if isinstance(value, PLAIN) and name not in FLAGS:
                yield (path, name), value
