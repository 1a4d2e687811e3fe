"""What `cut` did: which layers and units stay, and what the model's code had to be told, as text and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estfx.cutting.edits import Edit
from estfx.showing import GROUND, MUTED, RUNS, SHADE, Block, Cells, Shown, compact, counted, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CutRecord"]

SHOWN_EDITS = 6


@dataclass(frozen=True)
class CutRecord(Shown):
    """What `cut` did: which layers and units stay, and what the model's code had to be told of it."""

    form: str  # "configuration": an ordinary checkpoint; "attributes": with a list of edits
    layers: tuple[str, ...]  # that stay, by the names they had
    dropped: tuple[str, ...]  # paths of modules
    units: Mapping[str, Mapping[str, list[int]]]  # of the layers that stay; a role that is whole is left out
    sizes: Mapping[str, Mapping[str, int]]  # how many units each of them had
    parameters: tuple[int, int]  # before, and now
    edits: tuple[Edit, ...]  # of the configuration, or of numbers in the model
    tries: int  # candidates that were looked at
    error: float  # of the cut's outputs against the masked whole, relative to the largest; -1 on the meta device
    entry: Mapping[str, Any] | None = field(default=None, repr=False)  # by attributes: what is written with the weights

    _repr_pretty_ = Shown._repr_pretty_  # a dataclass's own repr would come first

    def _blocks(self) -> Iterator[Block]:
        before, now = self.parameters
        layers = f"{len(self.layers)} of {len(self.layers) + len(self.dropped)} layers"
        yield f"{counted(now)} of {counted(before)} parameters ({now / before:.1%}), {layers}"
        roles = list(dict.fromkeys(role for sizes in self.sizes.values() for role in sizes))
        if roles:
            rows = [(name, *(self._kept(name, role) for role in roles)) for name in self.layers]
            yield Cells(("layer", *roles), rows, words=frozenset(range(len(roles) + 1)))
        if self.dropped:
            yield f"left out: {', '.join(self.dropped)}"
        changed = [str(edit) for edit in self.edits[:SHOWN_EDITS]]
        rest = f", … ({len(self.edits)})" if len(self.edits) > SHOWN_EDITS else ""
        if self.form == "configuration":
            yield f"an ordinary checkpoint; of its configuration: {', '.join(changed) or 'nothing'}{rest}"
        else:
            yield f"by numbers that its code reads: {', '.join(changed) or 'none has to change'}{rest}"
            yield "import estfx before from_pretrained, or call estfx.load"
        if self.error >= 0:
            yield f"its outputs are those of the masked whole; largest relative error {self.error:.1e}"
        else:
            yield "not compared with the masked whole: the weights are on the meta device"

    def _kept(self, layer: str, role: str) -> str:
        size = self.sizes.get(layer, {}).get(role)
        if size is None:
            return ""
        kept = self.units.get(layer, {}).get(role)
        return f"all {size}" if kept is None else f"{len(kept)} of {size}: {compact(kept, most=4)}"

    def plot(self, path: str | Path | None = None, title: str = "") -> Figure:
        """Which units of each layer stay, a strip for each role; written to `path`, a .png or .svg, if there is one."""
        roles = list(dict.fromkeys(role for sizes in self.sizes.values() for role in sizes)) or [""]
        names = [name for name in self.layers if self.sizes.get(name)]
        with style():
            from matplotlib.figure import Figure as Made

            height = 0.9 + 0.22 * max(len(names), 4)
            figure = Made(figsize=(2.2 + 2.6 * len(roles), height), layout="constrained")
            columns = figure.subplots(1, len(roles), squeeze=False)[0]
            for axes, role in zip(columns, roles, strict=True):
                for row, name in enumerate(names):
                    size = self.sizes[name].get(role)
                    if size is None:
                        continue
                    kept = self.units.get(name, {}).get(role)
                    axes.broken_barh([(0, size)], (row - 0.36, 0.72), facecolor=SHADE)
                    runs = [(unit, 1) for unit in kept] if kept is not None else [(0, size)]
                    axes.broken_barh(runs, (row - 0.36, 0.72), facecolor=RUNS[0], edgecolor=GROUND, linewidth=0.0)
                axes.set_title(role, fontsize=9, color=MUTED)
                axes.set_ylim(len(names) - 0.5, -0.5)
                axes.set_yticks(range(len(names)), names if axes is columns[0] else [""] * len(names), fontsize=7)
                axes.tick_params(axis="y", length=0)
                axes.xaxis.get_major_locator().set_params(integer=True)
                axes.set_xlabel("unit")
            if title:
                figure.suptitle(f"{title}: what stays (dark)", fontsize=10)
            if path is not None:
                written(figure, path)
        return figure
