"""What a search found, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estfx.showing import MUTED, RUNS, Block, Cells, Shown, style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SearchResult"]


@dataclass(frozen=True)
class SearchResult(Shown):
    """The best part that was found: `estfx.cut(model, result.units, layers=result.layers)`."""

    units: Mapping[str, Mapping[str, list[int]]]  # of the layers that stay; a role that is whole is left out
    layers: tuple[str, ...]  # that stay
    skipped: tuple[str, ...]
    sizes: Mapping[str, Mapping[str, int]]  # how many units each layer has
    loss: float  # in nats, on the calibration text
    first_loss: float  # of what the scores alone say is best, with the same target
    whole_loss: float
    shares: Mapping[str, float]  # of the whole layers' costs, for each of the target's
    history: tuple[tuple[int, float], ...]  # after each generation, candidates so far and the lowest loss
    candidates: int  # that were judged
    programs: int  # graphs that ran
    compilations: int
    seconds: float

    _repr_pretty_ = Shown._repr_pretty_  # a dataclass's own repr would come first

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def _blocks(self) -> Iterator[Block]:
        told = ", ".join(f"{share:.1%} of the layers' {kind}" for kind, share in self.shares.items())
        yield f"{told}: loss {self.loss:.4f}; by the scores alone {self.first_loss:.4f}, whole {self.whole_loss:.4f}"
        roles = list(dict.fromkeys(role for sizes in self.sizes.values() for role in sizes))
        rows = []
        for name in (*self.layers, *self.skipped):
            kept = {role: len(units) for role, units in self.units.get(name, {}).items()}
            sizes = self.sizes.get(name, {})
            told_by_role = (
                f"{kept.get(role, sizes[role])} of {sizes[role]}" if role in sizes else "" for role in roles
            )
            rows.append((name, *(each if name in self.layers else "skipped" for each in told_by_role)))
        yield Cells(("layer", *roles), rows, words=frozenset(range(len(roles) + 1)))
        each = self.seconds / max(self.candidates, 1)
        yield (
            f"{self.candidates} candidates in {self.seconds:.0f} s ({each:.2g} s each), by {self.programs} programs, "
            f"{self.compilations} of them compiled"
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        units = {name: {role: list(kept) for role, kept in roles.items()} for name, roles in self.units.items()}
        return {**vars(self), "units": units, "history": [list(each) for each in self.history]}

    def plot(self, path: str | Path | None = None, title: str = "") -> Figure:
        """The lowest loss against the candidates judged; written to `path`, a .png or .svg, if there is one."""
        with style():
            from matplotlib.figure import Figure as Made

            figure = Made(figsize=(6.4, 3.6), layout="constrained")
            axes = figure.subplots()
            axes.step(*zip(*self.history, strict=True), where="post", color=RUNS[0])
            for loss, told in ((self.first_loss, "by the scores alone"), (self.whole_loss, "the whole")):
                axes.axhline(loss, color=MUTED, linewidth=0.8, linestyle="--")
                axes.annotate(told, (0, loss), xytext=(4, 3), textcoords="offset points", fontsize=8, color=MUTED)
            axes.set_xlim(0, self.history[-1][0])
            axes.set_xlabel("candidates")
            axes.set_ylabel("loss (nats)")
            if title:
                axes.set_title(title, fontsize=10)
            if path is not None:
                written(figure, path)
        return figure
