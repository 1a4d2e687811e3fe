"""What objects look like when they are printed, shown in a notebook, or drawn.

In go lines and cells; out come text, rich's tables, HTML, and figures in one style.
"""

from estfx.showing.blocks import Block, Cells, Lines, Shown, compact, counted, print_shown, sized
from estfx.showing.charts import GROUND, LIGHT, MUTED, RUNS, SHADE, chart_of, style, written

__all__ = [
    "GROUND",
    "LIGHT",
    "MUTED",
    "RUNS",
    "SHADE",
    "Block",
    "Cells",
    "Lines",
    "Shown",
    "chart_of",
    "compact",
    "counted",
    "print_shown",
    "sized",
    "style",
    "written",
]
