"""What a terminal shows of a training run: how far it is, its losses and FLOPs, and its stages with their seconds."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from estfx.costs import Plan
from estfx.training.step_records import LEFT_OUT

__all__ = ["LiveView"]

WIDEST = 80  # columns, however wide the terminal
BARS = "▁▂▃▄▅▆▇█"
SMOOTHING = 0.9  # of the loss: how much of it stays from one step to the next
COLUMNS = ("stage", "steps", "heads", "neurons", "layers", "FLOPs", "s/step", "of last")
NARROW = ("stage", "s/step", "of last")  # what is left of them below 64 columns
MOST_STAGES = 7  # rows of the table; those around the stage in force


@dataclass
class LiveView:
    """The state of a run, written by the training loop, and its picture, drawn by another thread whenever it is due."""

    plan: Plan
    tokens_per_step: int
    compiles: bool
    done: int = 0  # steps
    stage: int = 0  # in force, from 0
    running_since: float | None = None  # of the first step of a stage, while it runs
    loss: float = math.nan
    learning_rate: float = math.nan
    held_out: list[tuple[int, float]] = field(default_factory=list)  # step and loss

    def __post_init__(self) -> None:
        self.begun = time.monotonic()
        self.seen = [0] * len(self.plan.stages)  # steps of each stage in this process
        self.seconds = [deque[float](maxlen=999) for _ in self.plan.stages]  # of its last steps, without the first few
        self.curve = [(0.0, 0)] * min(60, self.plan.whole.stop)  # sum and number of the losses, by part of the run
        self._smoothed, self._weight = 0.0, 0.0

    # -- written by the loop ----------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """A step begins."""
        self.stage = bisect_right(self.plan.stages, step, key=lambda stage: stage.start) - 1
        if self.seen[self.stage] == 0:
            self.running_since = time.monotonic()

    def end(self, step: int, stage: int, loss: float, seconds: float) -> None:
        """A step has ended; `stage` counts from 0."""
        self.done, self.stage, self.loss, self.running_since = step + 1, stage, loss, None
        self.seen[stage] += 1
        if self.seen[stage] > LEFT_OUT:
            self.seconds[stage].append(seconds)
        if math.isfinite(loss):
            part = min(len(self.curve) - 1, step * len(self.curve) // self.plan.whole.stop)
            total, count = self.curve[part]
            self.curve[part] = (total + loss, count + 1)
            self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    # -- figures ----------------------------------------------------------------------------------

    @property
    def smoothed(self) -> float:
        """The loss as an exponential mean over its last steps, ten or so."""
        return self._smoothed / self._weight if self._weight else math.nan

    def measured(self) -> list[float | None]:
        """Seconds per step of each stage, the median so far, without the first steps, which compile."""
        return [median(list(each)) if each else None for each in self.seconds]

    def expected(self) -> list[float | None]:
        """Likewise; of a stage that was not measured yet, the nearest one's times its share of FLOPs."""
        measured = self.measured()
        known = [number for number, each in enumerate(measured) if each is not None]
        if not known:
            return measured
        flops = [stage.flops_model for stage in self.plan.stages]
        nearest = [min(known, key=lambda k: abs(k - number)) for number in range(len(measured))]
        return [(measured[k] or 0.0) * flops[number] / flops[k] for number, k in enumerate(nearest)]

    def remaining(self) -> float | None:
        """Seconds that the steps to come take; None before there is anything to go by."""
        total = 0.0
        for stage, seconds in zip(self.plan.stages, self.expected(), strict=True):
            if seconds is None:
                return None
            total += max(0, stage.stop - max(stage.start, self.done)) * seconds
        return total

    def flops(self) -> tuple[float, float]:
        """Of the steps so far: what they took, and what the whole model would have taken more."""
        stages = self.plan.stages
        spent = sum(max(0, min(stage.stop, self.done) - stage.start) * stage.flops_model for stage in stages)
        return spent, self.done * self.plan.whole.flops_model - spent

    # -- the picture ------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDEST, options.max_width)
        for line in self.lines(width, ascii_only=options.ascii_only):
            line.truncate(width)
            line.no_wrap = True
            yield line

    def lines(self, width: int, *, ascii_only: bool = False) -> Iterator[Text]:
        """The lines of the picture, the most important ones first: a terminal that is too low leaves out the last."""
        yield self._bar(width, ascii_only)
        yield self._losses(width, ascii_only)
        yield from _filled(self._figures(), width)
        if (since := self.running_since) is not None:
            what = "compiling" if self.compiles else "running"
            seconds = time.monotonic() - since
            yield Text(f"{what} the first step of stage {self.stage + 1}: {seconds:.0f} s", "yellow")
        else:
            yield Text("")
        yield from self._stages(width, ascii_only)

    def _bar(self, width: int, ascii_only: bool) -> Text:
        total = self.plan.whole.stop
        left = self.remaining()
        times = f" {_clock(time.monotonic() - self.begun)}, {'?' if left is None else _clock(left)} left"
        count = f"{self.done}/{total} "
        if width < 64:
            times = ""
        cells = max(1, width - len(count) - len(times))
        full, empty, cut = ("#", ".", "|") if ascii_only else ("━", "┈", "┃")
        text = Text(count)
        boundaries = {stage.start * cells // total for stage in self.plan.stages[1:]}
        filled = self.done * cells // total
        for i in range(cells):
            glyph = cut if i in boundaries else full if i < filled else empty
            text.append(glyph, "green" if i < filled else "dim")
        return text.append(times)

    def _losses(self, width: int, ascii_only: bool) -> Text:
        text = Text(f"loss {self.loss:.3f}, smoothed {self.smoothed:.3f}" if self.done else "loss -", "bold")
        if not ascii_only and (room := width - len(text) - 1) >= 8:
            text.append(" ").append(_sparkline(self.curve, room), "not bold cyan")
        return text

    def _figures(self) -> Iterator[str]:
        spent, saved = self.flops()
        yield f"FLOPs spent {spent:.2e}"
        yield f"saved {saved:.2e}" + (f" ({saved / (spent + saved):.1%})" if self.done else "")
        if seconds := self.measured()[self.stage]:
            yield f"{self.tokens_per_step / seconds:,.0f} tokens/s"
        if math.isfinite(self.learning_rate):
            yield f"learning rate {self.learning_rate:.2e}"
        if self.held_out:
            yield "held-out loss " + ", ".join(f"{loss:.3f} at {step}" for step, loss in self.held_out[-3:])

    def _stages(self, width: int, ascii_only: bool) -> Iterator[Text]:
        names = COLUMNS if width >= 64 else NARROW
        measured = self.measured()
        rows = [self._row(number, measured) for number in range(len(self.plan.stages))]
        first = max(0, min(self.stage - MOST_STAGES // 2, len(rows) - MOST_STAGES))
        shown = rows[first : first + MOST_STAGES]
        widths = [max(len(name), *(len(row[name]) for row in shown)) for name in names]
        titles = "  ".join(name.rjust(each) for name, each in zip(names, widths, strict=True))
        yield Text(f"  {titles}", "dim")
        for number, row in enumerate(shown, start=first):
            mark = (">" if ascii_only else "▸") if number == self.stage else " "
            cells = "  ".join(row[name].rjust(each) for name, each in zip(names, widths, strict=True))
            yield Text(f"{mark} {cells}", "bold" if number == self.stage else "")

    def _row(self, number: int, measured: Sequence[float | None]) -> dict[str, str]:
        stage, last = self.plan.stages[number], self.plan.stages[-1]
        own, whole = measured[number], measured[-1]
        planned = stage.flops_model / last.flops_model
        return {
            "stage": str(number + 1),
            "steps": f"{stage.start}-{stage.stop - 1}",
            **{name: f"{getattr(stage, name):.0%}" for name in ("heads", "neurons", "layers")},
            "FLOPs": f"{stage.flops_model / self.plan.whole.flops_model:.1%}",
            "s/step": "-" if own is None else f"{own:.3f}",
            "of last": f"{own / whole:.2f}" if own is not None and whole else f"~{planned:.2f}",  # by FLOPs
        }


def _filled(parts: Iterator[str], width: int) -> Iterator[Text]:
    """The parts one after another, as many in a line as fit."""
    line = ""
    for part in parts:
        if line and len(line) + 3 + len(part) > width:
            yield Text(line)
            line = ""
        line = f"{line}   {part}" if line else part
    yield Text(line)


def _sparkline(curve: Sequence[tuple[float, int]], width: int) -> str:
    """The means of the parts as bars of eight heights; what was not trained yet is left out."""
    size = min(width, len(curve))
    edges = [i * len(curve) // size for i in range(size + 1)]
    groups = [[total / count for total, count in curve[a:b] if count] for a, b in pairwise(edges)]
    means = [fmean(group) for group in groups if group]
    if not means:
        return ""
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((each - low) * scale)] for each in means)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
