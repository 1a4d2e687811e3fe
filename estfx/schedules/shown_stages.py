"""Stages for reading: as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from estfx.errors import ScheduleError
from estfx.schedules.stage import Stage
from estfx.showing import RUNS, Block, Cells, chart_of, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["stages_blocks", "stages_chart"]


def stages_blocks(
    stages: Sequence[Stage], total_steps: int | None, resample_every: int | str, *, in_shares: bool
) -> Iterator[Block]:
    """How many stages there are, a row for each, and how often a part is drawn."""
    over = f" over {total_steps:,} steps" if total_steps is not None else ""
    over = ", in shares of a run whose length is not known yet" if in_shares else over

    def at(step: int) -> str:
        return f"{step / total_steps:.4g}" if in_shares and total_steps else f"{step:,}"

    yield f"{len(stages)} stage{'s' * (len(stages) > 1)}{over}"
    stops = [*(stage.start for stage in stages[1:]), total_steps]
    yield Cells(
        (
            "stage",
            "from" if in_shares else "first step",
            "lasts" if in_shares else "steps",
            "heads",
            "neurons",
            "layers",
        ),
        [
            (
                f"{number}",
                at(stage.start),
                "the rest" if stop is None else at(stop - stage.start),
                *(f"{fraction:.4g}" for fraction in (stage.heads, stage.neurons, stage.layers)),
            )
            for number, (stage, stop) in enumerate(zip(stages, stops, strict=True), start=1)
        ],
    )
    every = "step" if resample_every == 1 else f"{resample_every} steps"
    yield "the part is drawn once" if resample_every == "never" else f"the part is drawn anew every {every}"


def stages_chart(
    stages: Sequence[Stage], total_steps: int | None, path: str | Path | None, *, in_shares: bool
) -> Figure:
    """The kept fractions over the steps."""
    if total_steps is None:
        raise ScheduleError("to draw a schedule its total_steps must be known: Schedule(..., total_steps=150_000).")
    with style():
        starts = [stage.start for stage in stages]
        figure, axes = chart_of(starts, total_steps)
        widths = (5.0, 3.0, 1.4)  # so that lines that lie on each other are all seen
        for colour, width, name in zip(RUNS, widths, ("layers", "heads", "neurons"), strict=False):
            kept = [getattr(stage, name) for stage in stages]
            axes.stairs(kept, [*starts, total_steps], baseline=None, color=colour, linewidth=width, label=name)
        axes.set_ylim(0, 1.04)
        axes.set_ylabel("kept")
        if in_shares:
            axes.set_xlabel("share of the run")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / total_steps:.0%}")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        if path is not None:
            written(figure, path)
    return figure
