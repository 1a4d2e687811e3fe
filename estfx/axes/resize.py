"""What a resizer may ask of a graph whose axes become narrower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from estfx.graphs import Axis, Dim, tags

__all__ = ["Resize"]


@dataclass
class Resize:
    """What a resizer may ask: the old dimensions, and what they come to once the axes in `kept` are narrower."""

    axes: tags.Axes
    kept: Mapping[Axis, int]
    materialise: Callable[[Any, Dim], Any]  # the size of a dimension with a dynamic part, from what it was
    born: Mapping[Node, str] = field(default_factory=dict)  # what took the place of others, as a part

    def dims(self, node: Node) -> tuple[Dim, ...]:
        """What the dimensions were made of before anything was narrowed."""
        return self.axes.dims[self.born.get(node, node.name)]

    def changes(self, dim: Dim) -> bool:
        """Whether the dimension becomes narrower."""
        return any(axis in self.kept for axis in dim.axes())

    def sizes(self, node: Node, old: Sequence[Any]) -> list[Any]:
        """The sizes in a shape argument, one for each dimension of the node's result; -1 and what stays are kept."""
        new = []
        for value, dim in zip(old, self.dims(node), strict=True):
            if not self.changes(dim) or (isinstance(value, int) and value == -1):
                new.append(value)
            elif any(axis.dynamic for axis in dim.axes()):
                new.append(self.materialise(value, dim))
            else:
                new.append(dim.narrowed_size(self.kept))
        return new
