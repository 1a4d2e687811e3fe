"""Operators that work on each element by itself: dimensions align at the right and unify."""

import torch
from torch.fx import Node

from estfx.axes.walk import Arguments, Dims, Walk, rule
from estfx.graphs import has_tensor, nodes_within, sizes

aten = torch.ops.aten


# Any other operator that torch itself tags as pointwise uses this rule too.
@rule(
    aten.add.Tensor,
    aten.rsub.Tensor,
    aten.dropout.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
    aten.masked_fill.Tensor,
    aten.polar.default,
    aten.complex.default,
    aten.silu.default,
    aten.softplus.default,
    aten.log_sigmoid.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.bernoulli.default,
    aten.expand_as.default,
    aten.feature_dropout.default,
    aten.floor_divide.default,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.__xor__.Tensor,
    aten.copy.default,  # what `DropNoise` makes of the operators in place below
    aten.fill.Scalar,
    aten.fill.Tensor,
    aten.zero.default,
    aten.uniform.default,
    aten.exponential.default,
    aten.copy_.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.zero_.default,
    aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
    aten.dropout_.default,
    aten.uniform_.default,
    aten.normal_.default,
    aten.exponential_.default,
    aten.bernoulli_.float,
)
def elementwise(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[i] = f(x[i], y[i], …)`."""
    operands = [n for n in nodes_within((node.args, node.kwargs)) if has_tensor(n)]
    return walk.align(node, operands, sizes(node))


@rule(aten.to.other, aten.type_as.default)
def to_other(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[i] = x[i]`; of the other tensor, only dtype and device count."""
    return walk.of(a["self"])


@rule(aten.native_dropout.default)
def native_dropout(walk: Walk, node: Node, a: Arguments) -> list[Dims]:
    """(value, mask)."""
    return [walk.of(a["input"])] * 2
