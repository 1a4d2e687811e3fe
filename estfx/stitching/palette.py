"""What each model of a palette costs, and how good it is: as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from estfx.errors import EstfxError
from estfx.scoring import loss_gradients, loss_of
from estfx.showing import RUNS, Block, Cells, Shown, counted, style, written
from estfx.stitching.stitched import Stitched
from estfx.tracing import call_arguments, in_mode, without_cache

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Palette"]


@dataclass(frozen=True)
class Row:
    """One model of the palette."""

    number: int  # as `stitched.use` takes it
    layers: tuple[int, int]  # of the small and of the large model, that run
    parameters: int  # that take part
    flops: int  # of a forward pass of the first batch, by torch's own counter
    loss: float  # the mean over the batches, in nats


@dataclass(frozen=True)
class Palette(Shown):
    """The models of a `Stitched` one, from the small one to the large one."""

    rows: tuple[Row, ...]

    _repr_pretty_ = Shown._repr_pretty_  # a dataclass's own repr would come first

    @staticmethod
    def of(stitched: Stitched, batches: Iterable[Any]) -> Palette:
        """Runs each model of the palette on the batches. Raises EstfxError if there are none."""
        given = list(batches)
        if not given:
            raise EstfxError('a palette is looked at on text: pass batches, such as [{"input_ids": tokens}].')
        used, rows = stitched.used, []
        depths = [len(ends.order) for ends in stitched._ends]
        try:
            with in_mode(stitched, training=False):
                for number in range(len(stitched) + 1):
                    stitched.use(number)
                    before, passed = ((depths[0], depths[1]), *stitched.stitches, (0, 0))[number]
                    at_work = _at_work(stitched, given[0])
                    args, kwargs = call_arguments(stitched.large, given[0])
                    with torch.no_grad(), FlopCounterMode(display=False) as counter:
                        stitched(*args, **without_cache(stitched.large, kwargs))
                    with torch.no_grad():
                        losses = [float(loss_of(stitched, batch)) for batch in given]
                    layers = (before, depths[1] - passed)
                    rows.append(Row(number, layers, at_work, counter.get_total_flops(), sum(losses) / len(losses)))
        finally:
            stitched.use(used)
        return Palette(tuple(rows))

    def _blocks(self) -> Iterator[Block]:
        most = max(row.flops for row in self.rows)
        yield f"a palette of {len(self.rows)} models; FLOPs of a forward pass"
        cells = [
            (
                str(row.number),
                f"{row.layers[0]} + {row.layers[1]}",
                counted(row.parameters),
                f"{row.flops / most:.1%}",
                f"{row.loss:.4f}",
            )
            for row in self.rows
        ]
        yield Cells(("model", "layers of small + large", "parameters", "FLOPs", "loss"), cells, words=frozenset({1}))

    def plot(self, path: str | Path | None = None, title: str = "") -> Figure:
        """Loss against FLOPs; written to `path`, a .png or .svg, if there is one."""
        with style():
            from matplotlib.figure import Figure as Made

            figure = Made(figsize=(6.4, 3.6), layout="constrained")
            axes = figure.subplots()
            flops, losses = [row.flops for row in self.rows], [row.loss for row in self.rows]
            axes.plot(flops, losses, color=RUNS[0], marker="o", markersize=4)
            for row in self.rows:
                axes.annotate(
                    str(row.number), (row.flops, row.loss), xytext=(4, 4), textcoords="offset points", fontsize=8
                )
            axes.set_xlabel("FLOPs of a forward pass")
            axes.set_ylabel("loss (nats)")
            axes.set_xlim(left=0)
            if title:
                axes.set_title(title, fontsize=10)
            if path is not None:
                written(figure, path)
        return figure


def _at_work(stitched: Stitched, batch: Any) -> int:
    """Parameters that a loss depends on."""
    found = loss_gradients(stitched, batch)
    return sum(p.numel() for p in stitched.parameters() if id(p) in found)
