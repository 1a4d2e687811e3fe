"""The fused attention core. One written by hand is made of contractions and a softmax, which have rules of their own."""

import torch
from torch.fx import Node

from estfx.walk import Arguments, Dims, Walk, rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[…, h, t, v] = Σ_s softmax_s(Σ_d q[…, h, t, d] · k[…, h', s, d]) · v[…, h', s, v]`, where `h` is `h' · group`
    for grouped queries.
    """
    q, k, v = (walk.of(a[name]) for name in ("query", "key", "value"))
    batch = list(q[:-2])
    walk.unify(node, q[-1], k[-1])
    walk.close(node, "query", -1, q[-1], ())
    walk.unify(node, k[-2], v[-2])
    for other in (k[:-2], v[:-2]):
        for i, ref in enumerate(reversed(other), start=1):
            mine, theirs = walk.algebra.size(batch[-i]), walk.algebra.size(ref)
            if theirs == mine:
                walk.unify(node, batch[-i], ref)
            elif theirs != 1 and i == 1 and a.get("enable_gqa") and mine % theirs == 0:
                walk.unify(node, batch[-i], walk.algebra.product([ref, walk.fresh(mine // theirs)]))
            elif mine == 1:
                batch[-i] = ref
    if a["attn_mask"] is not None:
        scores = (*batch, q[-2], k[-2])
        for ref, other in zip(reversed(scores), reversed(walk.of(a["attn_mask"])), strict=False):
            if walk.algebra.size(other) == walk.algebra.size(ref) != 1:
                walk.unify(node, ref, other)
    return (*batch, q[-2], v[-1])

