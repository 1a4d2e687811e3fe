"""The figures of a report, drawn by matplotlib's objects: nothing here has a state of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.typing import LineStyleType

from estfx.run_report.contents import Contents, RunContents
from estfx.run_report.curves import AXES, Floats
from estfx.run_report.trained_units import RoleMap, TrainedUnits

__all__ = ["COLOURS", "TITLES", "figures_of", "style"]

TEXT, MUTED, GRID, GROUND, SHADE = "#1f2329", "#59626d", "#d6dbe1", "#fdfdfe", "#e1e8f2"
RUNS = ("#0b62b8", "#b8460b", "#0f7a56", "#7d3fd6", "#a5226d", "#6b6200")
DASHES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)))
MARKERS = "osD^vP"
COLOURS: Mapping[str, str] = {  # by the name that the page gives a colour, in which it may be another
    "text": TEXT, "muted": MUTED, "grid": GRID, "ground": GROUND, "shade": SHADE,
    **{f"run-{number}": colour for number, colour in enumerate(RUNS, start=1)},
}  # fmt: skip
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


@contextmanager
def style() -> Iterator[None]:
    """Has matplotlib's settings for these figures in force while they are drawn and written."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "estfx",  # the same figure is the same file
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,  # a run may be called $x$
        "text.color": TEXT,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
        "figure.facecolor": GROUND,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield


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
                yield f"trained-{number}-{role.role}", _role_map(role)


def _losses(runs: Sequence[RunContents], axis: str, legend: bool) -> Figure:
    figure, axes = _chart(AXIS_LABELS[axis], "loss, nats a token")
    for number, each in enumerate(runs):
        colour, curves = RUNS[number % len(RUNS)], each.curves
        axes.plot(curves.at[axis], curves.loss, color=colour, alpha=0.3, linewidth=0.6)
        axes.plot(curves.at[axis], curves.smoothed, color=colour, linewidth=1.4, linestyle=DASHES[number % 4])
        axes.plot(
            curves.held_out_at[axis], curves.held_out, color=colour, linewidth=0.8, linestyle=":",
            marker=MARKERS[number % 6], markersize=4, markerfacecolor=GROUND,
        )  # fmt: skip
    _shade_stages(axes, runs, axis)
    _frame_losses(axes, runs)
    if axis in ("tokens", "flops"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_locator(MaxNLocator(6))
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
    parts = [part for each in runs for part in (each.curves.smoothed, each.curves.held_out)]
    seen = np.concatenate(parts)
    seen = seen[np.isfinite(seen)]
    raw = np.concatenate([each.curves.loss for each in runs])
    raw = raw[np.isfinite(raw)]
    if len(seen) and len(raw):
        low, high = min(seen.min(), np.quantile(raw, 0.005)), max(seen.max(), np.quantile(raw, 0.995))
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 2 * margin)


def _seconds(runs: Sequence[RunContents], legend: bool) -> Figure:
    figure, axes = _chart(AXIS_LABELS["step"], "seconds (logarithmic)")
    axes.set_yscale("log")
    for number, each in enumerate(runs):
        curves = each.curves
        axes.plot(
            curves.at["step"],
            curves.slowest,
            color=RUNS[number % len(RUNS)],
            linewidth=0.8,
            linestyle=DASHES[number % 4],
        )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _shade_stages(axes, runs, "step")
    if legend:
        _legend(figure, runs, [], [])
    return figure


def _graphs(runs: Sequence[RunContents], legend: bool) -> Figure:
    figure, axes = _chart(AXIS_LABELS["step"], "graphs compiled in a step")
    most = 1
    for number, each in enumerate(runs):
        compiled = (each.facts["graphs"] or {}).get("steps", [])
        places, counts = [step["step"] for step in compiled], [step["graphs"] for step in compiled]
        colour = RUNS[number % len(RUNS)]
        axes.vlines(places, 0, counts, color=colour, linewidth=1.2, linestyle=DASHES[number % 4])
        axes.plot(
            places, counts, color=colour, marker=MARKERS[number % 6], markersize=5, linestyle="none", clip_on=False
        )
        most = max([most, *counts])
    axes.set_xlim(-0.02 * (longest := max(each.run.steps.step[-1] + 1 for each in runs)), longest)
    axes.set_ylim(0, most * 1.25)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _shade_stages(axes, runs, "step")
    if legend:
        _legend(figure, runs, [], [])
    return figure


def _layers_map(trained: TrainedUnits) -> Figure:
    extent = (trained.first, trained.stop, len(trained.layers) - 0.5, -0.5)
    return _map(
        trained.running, trained.layers, extent, "optimizer steps", "share of these steps\nin which it ran", (0, 1)
    )


def _role_map(role: RoleMap) -> Figure:
    widest = max(role.sizes)
    extent = (-0.5, widest - 0.5, len(role.layers) - 0.5, -0.5)
    span = (float(role.shares.min()), float(role.shares.max()))
    return _map(
        role.shares, role.layers, extent, role.role.replace("_", " "), "share of the steps\nthat trained it", span
    )


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


def _chart(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, linewidth=0.6)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0)
    return figure, axes


def _shade_stages(axes: Axes, runs: Sequence[RunContents], axis: str) -> None:
    """The stages of the first run that has several: each but the last darker than the next."""
    staged = next((each for each in runs if len(each.curves.stages) > 1), None)
    if staged is None:
        return
    count = len(staged.curves.stages)
    for place, (number, spans) in enumerate(staged.curves.stages):
        start, stop = spans[axis]
        axes.axvspan(start, stop, color=SHADE, alpha=1 - place / max(count - 1, 1), linewidth=0, zorder=0)
        low, high = axes.get_xlim()
        if stop - start > 0.04 * (high - low):
            text = f"stage {number}" if stop - start > 0.11 * (high - low) else str(number)
            axes.text(
                (start + stop) / 2,
                0.985,
                text,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=8,
                color=MUTED,
            )


def _legend(figure: Figure, runs: Sequence[RunContents], kinds: list[Line2D], names: list[str]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=RUNS[n % len(RUNS)],
            linewidth=1.6,
            linestyle=DASHES[n % 4],
            marker=MARKERS[n % 6],
            markersize=4,
        )
        for n in range(len(runs))
    ]
    labels = [each.label.lstrip("_") or each.label for each in runs]  # matplotlib hides a label that begins with it
    figure.legend([*handles, *kinds], [*labels, *names], loc="outside upper left", ncols=3, fontsize=8)
