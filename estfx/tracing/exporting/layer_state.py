"""Buffers that a layer changes, which its graph would lose or would compute on a part of its units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.fx import Graph, Node

from estfx.graphs import describe, memory_of, writes

__all__ = ["Watch", "changed_buffers"]


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
    """Notes which buffers of a layer are set to other tensors while its code runs; not which are written in place."""

    def __init__(self) -> None:
        self.changed: list[str] = []

    @contextmanager
    def over(self, layer: nn.Module) -> Iterator[None]:
        before = dict(layer.named_buffers())
        yield
        now = dict(layer.named_buffers())
        self.changed += [name for name in before | now if now.get(name) is not before.get(name)]
