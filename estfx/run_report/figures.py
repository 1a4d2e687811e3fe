"""The figures of a report, drawn by matplotlib's objects: nothing here has a state of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.typing import LineStyleType

from estfx.run_report.contents import Contents, RunContents
from estfx.run_report.curves import AXES, Floats
from estfx.run_report.told_values import told
from estfx.run_report.trained_units import RoleMap, TrainedUnits
from estfx.showing import GROUND, MUTED, RUNS, SHADE

__all__ = ["TITLES", "figures_of", "word"]

DASHES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)))
MARKERS = "osD^vP"
AXIS_LABELS = {
    "step": "optimizer steps",
    "tokens": "tokens trained on",
    "flops": "training FLOPs, whole model",
    "seconds": "seconds in training steps",
}
TITLES = {f"loss-{axis}": f"Loss against {AXIS_LABELS[axis]}" for axis in AXES} | {
    "seconds": "Seconds of every step",
    "graphs": "Graphs compiled",
}


def figures_of(contents: Contents, legend: bool) -> Iterator[tuple[str, Figure]]:
    """Draws them one by one, each with a name for a file; must run within `style`."""
    for axis in AXES:
        yield f"loss-{axis}", _losses(contents.runs, axis, legend)
    yield "seconds", _seconds(contents.runs, legend)
    if any((each.facts["graphs"] or {}).get("total") for each in contents.runs):
        yield "graphs", _graphs(contents.runs, legend)
    for number, each in enumerate(contents.runs, start=1):
        if each.trained is not None and not each.trained.everything:
            yield f"trained-{number}-layers", _layers_map(each.trained)
            for role in each.trained.roles:
                yield f"trained-{number}-{word(role.role)}", _role_map(role, each.trained.steps)


def word(text: str) -> str:
    """A text of a run folder as a part of a name for files and for elements of a page: letters, digits and `_`."""
    return re.sub(r"\W+", "_", text, flags=re.ASCII)[:60] or "_"


def _losses(runs: Sequence[RunContents], axis: str, legend: bool) -> Figure:
    figure, axes = _chart(runs, axis, "loss, nats a token")
    for number, each in enumerate(runs):
        line, curves = _line(number), each.curves
        point = "." if len(curves.loss) == 1 else None
        axes.plot(curves.at[axis], curves.loss, color=line["color"], alpha=0.3, linewidth=0.6)
        (smoothed,) = axes.plot(curves.at[axis], curves.smoothed, **line, linewidth=1.4, marker=point)
        told(smoothed, number, f"{each.label}, training, smoothed")
        dots = ":" if len(curves.held_out) > 2 else "none"  # no straight line from the beginning to the end
        (held_out,) = axes.plot(
            curves.held_out_at[axis], curves.held_out, color=line["color"], linewidth=0.8, linestyle=dots,
            marker=MARKERS[number % 6], markersize=4, markerfacecolor=GROUND, clip_on=False,
        )  # fmt: skip
        told(held_out, number, f"{each.label}, held-out", dense=False)
    _frame_losses(axes, runs)
    if legend:
        kinds = [
            Line2D([], [], color=MUTED, alpha=0.4, linewidth=0.6),
            Line2D([], [], color=MUTED, linewidth=1.4),
            Line2D([], [], color=MUTED, linewidth=0.8, linestyle=":", marker="o", markersize=4, markerfacecolor=GROUND),
        ]
        _legend(figure, runs, kinds, ["training", "training, smoothed", "held-out"])
    return figure


def _frame_losses(axes: Axes, runs: Sequence[RunContents]) -> None:
    """Leaves spikes out of the frame, so that the rest can be told apart."""
    seen = np.concatenate([part for each in runs for part in (each.curves.smoothed, each.curves.held_out)])
    seen = seen[np.isfinite(seen)]
    raw = np.concatenate([each.curves.loss for each in runs])
    raw = raw[np.isfinite(raw)]
    if len(seen) and len(raw):
        low, high = min(seen.min(), np.quantile(raw, 0.005)), max(seen.max(), np.quantile(raw, 0.995))
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 2 * margin)


def _seconds(runs: Sequence[RunContents], legend: bool) -> Figure:
    figure, axes = _chart(runs, "step", "seconds (logarithmic)")
    axes.set_yscale("log")
    for number, each in enumerate(runs):
        point = "." if len(each.curves.slowest) == 1 else None
        (line,) = axes.plot(each.curves.at["step"], each.curves.slowest, **_line(number), linewidth=0.8, marker=point)
        told(line, number, each.label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if legend:
        _legend(figure, runs, [], [])
    return figure


def _graphs(runs: Sequence[RunContents], legend: bool) -> Figure:
    figure, axes = _chart(runs, "step", "graphs compiled in a step")
    most = 1
    for number, each in enumerate(runs):
        compiled = (each.facts["graphs"] or {}).get("steps", [])
        places, counts = [step["step"] for step in compiled], [step["graphs"] for step in compiled]
        line = _line(number)
        axes.vlines(places, 0, counts, color=line["color"], linewidth=1.2, linestyle=line["linestyle"])
        marker = MARKERS[number % 6]
        (points,) = axes.plot(
            places, counts, color=line["color"], marker=marker, markersize=5, linestyle="none", clip_on=False
        )
        told(points, number, each.label, dense=False)
        most = max([most, *counts])
    axes.set_ylim(0, most * 1.25)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if legend:
        _legend(figure, runs, [], [])
    return figure


def _layers_map(trained: TrainedUnits) -> Figure:
    extent = (trained.first, trained.stop, len(trained.layers) - 0.5, -0.5)
    return _map(
        trained.running, trained.layers, extent, "optimizer steps", "share of these steps\nin which it ran", (0, 1)
    )


def _role_map(role: RoleMap, steps: int) -> Figure:
    """Colours for what departs from chance: its range takes at most half of the scale, and is marked beside it."""
    widest = max(role.sizes)
    extent = (-0.5, widest - 0.5, len(role.layers) - 0.5, -0.5)
    chance = 3 * math.sqrt(role.mean * (1 - role.mean) / steps)  # of one unit, if every step draws anew
    low, high = role.mean - chance, role.mean + chance
    span = (
        max(0.0, min(float(role.shares.min()), low - chance)),
        min(1.0, max(float(role.shares.max()), high + chance)),
    )
    label = role.role.replace("_", " ")
    figure = _map(role.shares, role.layers, extent, label, "share of the steps\nthat trained it", span)
    bar = figure.axes[1]
    for end in (low, high) if np.mean((role.shares >= low) & (role.shares <= high)) > 0.8 else ():
        bar.axhline(end, color="white", linewidth=1.5)
    return figure


def _map(
    shares: Floats,
    rows: Sequence[str],
    extent: tuple[float, float, float, float],
    label: str,
    meaning: str,
    span: tuple[float, float],
) -> Figure:
    height = min(4.2, 0.9 + 0.16 * len(rows))
    figure = Figure(figsize=(11.9, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        shares,
        aspect="auto",
        interpolation="none",
        extent=extent,
        cmap="viridis",
        vmin=span[0],
        vmax=max(span[1], span[0] + 1e-3),
    )
    every = -(-len(rows) // 16)
    axes.set_yticks(range(0, len(rows), every), [rows[row] for row in range(0, len(rows), every)], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel(label)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=12)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if span[1] - span[0] > 0.05 else 1))
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.set_label(meaning, fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _line(number: int) -> dict[str, Any]:
    """A run is told from the others by its colour and its dashes; where there are points, by their shape too."""
    return {"color": RUNS[number % len(RUNS)], "linestyle": DASHES[number % len(DASHES)]}


def _chart(runs: Sequence[RunContents], axis: str, y: str) -> tuple[Figure, Axes]:
    """A frame for all that was done, with the stages of the first run that has several, each but the last shaded."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_gid(f"spine-{side}")
    axes.set_xlabel(AXIS_LABELS[axis])
    axes.set_ylabel(y)
    spans = [spans[axis] for each in runs for _, spans in each.curves.stages]
    low, high = min(start for start, _ in spans), max(stop for _, stop in spans)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == "step"))
    si = EngFormatter(sep=" ")
    axes.xaxis.set_major_formatter(si if axis in ("tokens", "flops") else lambda value, _: f"{value:,.10g}")
    staged = next((each.curves.stages for each in runs if len(each.curves.stages) > 1), ())
    for place, (number, at) in enumerate(staged):
        start, stop = at[axis]
        share = (stop - start) / (high - low)
        axes.axvspan(start, stop, color=SHADE, alpha=1 - place / (len(staged) - 1), linewidth=0, zorder=0)
        if share > 0.04:
            name = f"stage {number}" if share > 0.11 else str(number)
            middle = ((start + stop) / 2, 0.985)
            top = axes.get_xaxis_transform()
            axes.text(*middle, name, transform=top, ha="center", va="top", fontsize=8, color=MUTED)
    return figure, axes


def _legend(figure: Figure, runs: Sequence[RunContents], kinds: list[Line2D], names: list[str]) -> None:
    handles = [
        Line2D([], [], **_line(number), linewidth=1.6, marker=MARKERS[number % 6], markersize=4)
        for number in range(len(runs))
    ]
    labels = [each.label.lstrip("_") or each.label for each in runs]  # matplotlib 3.9 hides a label that begins so
    figure.legend([*handles, *kinds], [*labels, *names], loc="outside upper left", ncols=3, fontsize=8)
