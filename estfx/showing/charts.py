"""The style of all figures, and a figure that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estfx.settings import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GROUND", "LIGHT", "MUTED", "RUNS", "SHADE", "chart_of", "style", "written"]

TEXT, MUTED, GRID, GROUND, SHADE = "#1f2329", "#59626d", "#d6dbe1", "#fdfdfe", "#e1e8f2"
RUNS = ("#0b62b8", "#b8460b", "#0f7a56", "#7d3fd6", "#a5226d", "#6b6200")
LIGHT: Mapping[str, str] = {  # by the name that a page gives a colour, in which it may be another
    "text": TEXT, "muted": MUTED, "grid": GRID, "ground": GROUND, "shade": SHADE,
    **{f"run-{number}": colour for number, colour in enumerate(RUNS, start=1)},
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Has matplotlib's settings for our figures in force while they are drawn and written.

    Raises SettingsError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise SettingsError("to draw this, matplotlib is needed: pip install 'estfx[plot]'.") from None

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


def chart_of(starts: list[int], stop: int) -> tuple[Figure, Axes]:
    """An empty chart over the optimizer steps from 0 to `stop`, with the stages' numbers above; call it in `style`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    class Chart(Figure):
        """A figure that a notebook shows, also one that has not loaded pyplot."""

        def _repr_png_(self) -> bytes:
            file = BytesIO()
            with style():
                self.savefig(file, format="png", dpi=110)
            return file.getvalue()

    figure = Chart(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 1)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], stop], strict=True), start=1):
        share = (end - start) / stop
        name = f"stage {number}" if share > 0.09 else str(number) if share > 0.03 else ""
        middle = (start + end) / 2
        axes.text(
            middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8, color=MUTED
        )
        if start:
            axes.axvline(start, color=GRID, linewidth=1, zorder=0)
    return figure, axes


def written(figure: Figure, path: str | Path) -> None:
    """Writes a figure; call it in `style`."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
    except ValueError as error:  # a format that it does not know
        raise SettingsError(f"{path} cannot be written: {error}.") from None
