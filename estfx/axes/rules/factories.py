"""Operators that make a tensor from nothing but sizes: its axes are born there."""

import torch
from torch.fx import Node

from estfx.axes.walk import FACTORIES, Arguments, Dims, Walk, rule

aten = torch.ops.aten
FACTORIES.update(
    {
        aten.arange.default,
        aten.arange.start,
        aten.arange.start_step,
        aten.linspace.default,
        aten.full.default,
        aten.zeros.default,
        aten.ones.default,
        aten.empty.memory_format,
        aten.scalar_tensor.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
        aten.eye.default,
        aten.rand.default,
        aten.randn.default,
    }
)


@rule(*FACTORIES)
def factory(walk: Walk, node: Node, a: Arguments) -> Dims:
    return walk.fresh_like(node)


@rule(aten.tril.default, aten.triu.default)
def triangle(walk: Walk, node: Node, a: Arguments) -> Dims:
    """A triangle of the last two dimensions, which stay whole."""
    dims = walk.of(a["self"])
    walk.pin("a triangle is taken of it", *dims[-2:])
    return dims
