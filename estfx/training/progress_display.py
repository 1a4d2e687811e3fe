"""Shows a training run: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from estfx.costs import Activity, Plan
from estfx.training.live_view import LiveView
from estfx.training.step_records import StepRecord

__all__ = ["ProgressDisplay"]

_NUM_PLAIN_LINES = 20  # spread over a run, besides one at each change of stage
_PER_SECOND = 2  # pictures; drawing one takes some milliseconds of another thread


class ProgressDisplay:
    """Where no terminal is, one line a step: stage, active layers, heads, neurons, loss and seconds per step.

    On a terminal a picture is drawn, from the first step on until the `with` is left, however that happens.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._total_steps = total_steps
        self._stage: int | None = None
        self._view: LiveView | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            if self._view is not None:
                self._view.running_since = None  # nothing runs any more
            self._live.stop()
            self._live = None

    def expect(self, plan: Plan, tokens_per_step: int, compiles: bool) -> None:
        """Says what the run will be; without it there is no picture."""
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.quiet:
            self._view = LiveView(plan, tokens_per_step, compiles)

    def restore(self, records: Iterable[StepRecord]) -> None:
        """Takes in the steps of a run that is resumed."""
        if self._view is not None:
            for record in records:
                self._view.end(record.step, record.stage - 1, record.loss, record.seconds)
            self._view.seen = [0] * len(self._view.seen)  # each stage compiles anew

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._view is None:
            return
        self._view.begin(step)
        if self._live is None:  # not before: what interrupts the preparation has a plain terminal
            self._live = Live(
                self._view,
                console=self._console,
                refresh_per_second=_PER_SECOND,
                redirect_stdout=sys.stdout.isatty(),  # what is piped stays in its pipe
            )
            self._live.start()
            self._console.show_cursor(True)  # so that nothing is to be put right should the process be killed

    def step(
        self, step: int, activity: Activity, loss: float, seconds: float, learning_rate: float = float("nan")
    ) -> None:
        """Shows a step that was taken."""
        if self._view is not None:
            self._view.learning_rate = learning_rate
            self._view.end(step, activity.stage - 1, loss, seconds)
        elif activity.stage != self._stage or (step + 1) % max(1, self._total_steps // _NUM_PLAIN_LINES) == 0:
            width = len(str(self._total_steps))
            self.say(f"step {step:>{width}}/{self._total_steps}  {activity}  loss {loss:.3f}  {seconds:.3f} s/step")
        self._stage = activity.stage

    def held_out(self, step: int, loss: float) -> None:
        """Shows a held-out loss after so many steps; in plain lines not the last, which the summary has."""
        if self._view is not None:
            self._view.held_out.append((step, loss))
        elif step == 0:
            self.say(f"held-out loss of the untrained model: {loss:.4f}")
        elif step < self._total_steps:
            self.say(f"held-out loss after {step} steps: {loss:.4f}")

    def say(self, line: str) -> None:
        """Prints a line, above the picture if there is one."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
