"""A plan for reading: what each stage costs, in rows, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from estfx.costs.stage_plan import StagePlan
from estfx.showing import MUTED, RUNS, SHADE, Block, Cells, chart_of, counted, sized, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plan_blocks", "plan_chart"]

PARTS = {"heads": "attention", "neurons": "MLP", "several": "both in one", "other": "rest of the layers"}


def plan_blocks(
    stages: Sequence[StagePlan], whole: StagePlan, batch: tuple[int, int], lines: Sequence[str]
) -> Iterator[Block]:
    """The stages, and the whole model over all steps, each in a column; `batch` is sequences × tokens of a step."""
    size, length = batch
    yield f"batches of {size} × {length} tokens, {whole.flops_model:.3e} FLOPs a step whole"
    headings = ["", *(f"stage {number}" for number in range(1, len(stages) + 1)), "whole"]
    yield Cells(headings, [(name, *cells) for name, cells in _rows(stages, whole)])
    tokens = whole.steps * size * length
    yield f"the run         {tokens:.3e} tokens, {_spent(stages):.3e} FLOPs, whole {_spent([whole]):.3e}"
    yield from lines
    yield (
        "Heads and neurons are counted over all layers, also those that are skipped. Activations are what the layers "
        "keep for the backward pass, uncompiled and without checkpointing."
    )


def plan_chart(stages: Sequence[StagePlan], whole: StagePlan, title: str, path: str | Path | None) -> Figure:
    """The FLOPs of a step over the steps, the whole model's beside them."""
    with style():
        starts = [stage.start for stage in stages]
        figure, axes = chart_of(starts, whole.stop)
        heights = [stage.flops_model / whole.flops_model for stage in stages]
        edges = [*starts, whole.stop]
        axes.axhspan(0, 1, facecolor=SHADE, edgecolor=MUTED, linewidth=0.5, zorder=0, label="saved")
        axes.stairs(heights, edges, fill=True, facecolor=RUNS[0], alpha=0.75, label="computed")
        for stage, height in zip(stages, heights, strict=True):
            if stage.steps > 0.06 * whole.stop:
                middle = (stage.start + stage.stop) / 2
                axes.text(middle, height / 2, f"{height:.0%}", ha="center", va="center", color="white")
        axes.set_ylabel("FLOPs of a step")
        figure.suptitle(title, fontsize=10)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        if path is not None:
            written(figure, path)
    return figure


def _spent(stages: Sequence[StagePlan]) -> float:
    return sum(stage.steps * stage.flops_model for stage in stages)


def _rows(stages: Sequence[StagePlan], whole: StagePlan) -> Iterator[tuple[str, list[str]]]:
    """The names of figures, and what they are in every stage and for the whole model."""
    each = [*stages, whole]
    yield "first step", [*(f"{s.start:,}" for s in stages), "0"]
    yield "steps", [f"{s.steps:,}" for s in each]
    for unit, (_, number) in whole.units.items():
        if number:
            yield f"{unit} kept", [f"{s.units[unit][0]:,}" for s in each]
    yield "FLOPs, layers", [f"{s.flops_layers / whole.flops_layers:.1%}" for s in each]
    yield "FLOPs, model", [f"{s.flops_model / whole.flops_model:.1%}" for s in each]
    for part, of in whole.flops_forward.items():
        yield f"forward, {PARTS.get(part, part)}", [f"{s.flops_forward.get(part, 0) / of:.1%}" for s in each]
    yield "parameters at work", [counted(s.parameters) for s in each]
    yield "activations", [sized(s.activation_bytes) for s in each]
