"""The fused attention core. One written by hand is contractions and a softmax, which have rules of their own."""

import torch
from torch.fx import Node

from estfx.axes.walk import Arguments, Dims, Walk, rule
from estfx.graphs import describe

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(walk: Walk, node: Node, a: Arguments) -> Dims:
    """`out[…, h, t, v] = Σ_s softmax_s(Σ_d q[…, h, t, d] · k[…, h', s, d]) · v[…, h', s, v]`, where `h` is `h' · group`
    for grouped queries.
    """
    q, k, v = (walk.of(a[name]) for name in ("query", "key", "value"))
    missing = max(len(k), len(v)) - len(q)
    batch = [*(walk.fresh(1) for _ in range(missing)), *q[:-2]]
    walk.unify(node, q[-1], k[-1])
    walk.close(node, "query", -1, q[-1], ())
    walk.unify(node, k[-2], v[-2])
    walk.couple(node, k[-2])
    for others in (k[:-2], v[:-2]):
        for i, ref in enumerate(reversed(others), start=1):
            mine, theirs = walk.algebra.size(batch[-i]), walk.algebra.size(ref)
            if theirs == mine:
                walk.unify(node, batch[-i], ref)
            elif theirs != 1 and i == 1 and a.get("enable_gqa") and mine % theirs == 0:
                walk.unify(node, batch[-i], walk.algebra.product([ref, walk.fresh(mine // theirs)]))
            elif mine == 1:
                batch[-i] = ref
    if a["is_causal"]:
        walk.pin(f"its order matters at {describe(node)}", q[-2], k[-2])
    if a["attn_mask"] is not None:
        scores = (*batch, q[-2], k[-2])
        for ref, score in zip(reversed(walk.of(a["attn_mask"])), reversed(scores), strict=False):
            if walk.algebra.size(ref) == walk.algebra.size(score) != 1:
                walk.unify(node, ref, score)
    return (*batch, q[-2], v[-1])
