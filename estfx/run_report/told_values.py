"""The values behind a chart, which the page's script tells where the pointer is."""

from __future__ import annotations

import json

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from estfx.showing import RUNS

__all__ = ["told", "values_of"]

_TOLD = "told"  # how the id of a line begins whose values are told


def told(line: Line2D, run: int, name: str, dense: bool = True) -> None:
    """Has a line's values told, under that name; one that is not `dense` only where it has a point."""
    line.set_label(name)
    line.set_gid(f"{_TOLD}-{run}-{'dense' if dense else 'points'}")


def values_of(figure: Figure) -> str:
    """The frame of a drawn figure and the values of its told lines, as JSON; empty if there are none.

    The frame is left, top, right, bottom in the units of the figure's SVG, and the values at its edges.
    """
    axes = figure.axes[0]
    lines = [_values(line) for line in axes.lines if str(line.get_gid()).startswith(_TOLD)]
    if not lines:
        return ""
    width, height = figure.get_size_inches() * 72
    box = axes.get_position()
    return json.dumps(
        {
            "frame": [box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height],
            "x": [*axes.get_xlim(), axes.get_xscale() == "log"],
            "y": [*axes.get_ylim(), axes.get_yscale() == "log"],
            "unit": axes.get_xlabel(),
            "integers": axes.get_xlabel() == "optimizer steps",
            "lines": lines,
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def _values(line: Line2D) -> dict[str, object]:
    _, run, kind = str(line.get_gid()).split("-")
    x, y = (np.asarray(data, dtype=np.float64) for data in (line.get_xdata(), line.get_ydata()))
    return {
        "name": line.get_label(),
        "color": f"var(--run-{int(run) % len(RUNS) + 1})",
        "dense": kind == "dense",
        "x": [_short(each) for each in x],
        "y": [_short(each) if np.isfinite(each) else None for each in y],
    }


def _short(value: float) -> float:
    number = float(f"{value:.7g}")
    return int(number) if number.is_integer() else number
