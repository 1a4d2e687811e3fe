"""Matrix products of many experts at once: rows are sorted by expert, and each expert has a matrix of its own."""

from __future__ import annotations

import torch
from torch.fx import Node

from estfx.axes.walk import Arguments, Dims, Walk, rule
from estfx.graphs import describe

aten = torch.ops.aten


# transformers has one of its own, for what torch's cannot do, and registers it when a model of experts is imported
@rule(aten._grouped_mm.default, "transformers::grouped_mm_fallback")
def grouped_product(walk: Walk, node: Node, a: Arguments) -> Dims | list[Dims]:
    """`out[n, o] = Σ_i x[n, i] · weight[expert of n, i, o]`; rows and experts stay whole."""
    first, second = (a["self"], a["mat2"]) if "mat2" in a else (a["input"], a["weight"])
    x, weight = walk.of(first), walk.of(second)
    if len(x) != 2 or len(weight) != 3:
        return walk.pin_all(node, f"groups in another form than rows by experts at {describe(node)}")
    walk.pin(f"rows are grouped by expert at {describe(node)}", x[0])
    walk.pin(f"it counts experts at {describe(node)}", weight[0])
    if a["offs"] is not None:
        walk.unify(node, weight[0], walk.of(a["offs"])[0])
    walk.unify(node, x[1], weight[1])
    walk.close(node, "self" if "mat2" in a else "input", -1, x[1], (weight[2],))
    if a.get("bias") is not None:
        walk.unify(node, weight[2], walk.of(a["bias"])[-1])
    return (x[0], weight[2])
