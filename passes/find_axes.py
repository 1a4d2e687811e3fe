from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from estfx import tags
from estfx.pipeline import Analysis
from estfx.walk import Walk


@dataclass(frozen=True)
class FindAxes(Analysis):
    """Puts `Axes`: every dimension of every value as an expression over axes, with pins, closings and couplings."""

    needs: ClassVar = (tags.Interface,)
    puts: ClassVar = (tags.Axes,)

    def run(self, gm: GraphModule) -> int:
        axes = Walk(gm, tags.get(gm, tags.Interface)).run()
        tags.put(gm, axes)
        return len(axes.dims)
