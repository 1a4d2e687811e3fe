"""Finds out what every dimension in a graph is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from estfx.axes import Walk
from estfx.graphs import Analysis, tags


@dataclass(frozen=True)
class FindAxes(Analysis):
    """A dimension is an axis, a product of dimensions or a sum of them: `768 = heads · head_dim`, `2304 = q + k + v`.

    before                                      after, in the tag
        %w: [2304, 768]                             [a1:12·a2:64 + a3:12·a4:64 + a5:12·a6:64, a0:768]
        %qkv = linear(%x, %w)                       […, the same sum]; a0 closes
        %q, %k, %v = split(%qkv, 768, 2)            […, a1:12·a2:64] and so on
        %h = view(%q, [b, t, 12, 64])               [b, t, a1:12, a2:64]

    Every operator says by its rule (`estfx/axes/rules`) which dimensions are one, which are cut, which are summed over
    and close, over which a statistic couples, and which must stay whole, with the reason.
    """

    needs: ClassVar = (tags.Interface,)
    puts: ClassVar = (tags.Axes,)

    def run(self, gm: GraphModule) -> int:
        axes = Walk(gm, tags.get(gm, tags.Interface)).run()
        tags.put(gm, axes)
        return len(axes.dims)
