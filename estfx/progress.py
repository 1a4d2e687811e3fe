"""Shows a training run: a bar on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from estfx.activity import Activity

__all__ = ["ProgressDisplay"]

_NUM_PLAIN_LINES = 20  # spread over a run, besides one at each change of stage


class ProgressDisplay:
    """One line a step: stage, active layers, heads, neurons, loss and seconds per step."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._total_steps = total_steps
        self._stage: int | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task("", total=total_steps)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, activity: Activity, loss: float, seconds: float) -> None:
        """Shows a step that was taken."""
        text = f"{activity}  loss {loss:.3f}  {seconds:.3f} s/step"
        if self._bar is not None:
            self._bar.update(self._task, completed=step + 1, description=text)
        elif activity.stage != self._stage or (step + 1) % max(1, self._total_steps // _NUM_PLAIN_LINES) == 0:
            width = len(str(self._total_steps))
            self.say(f"step {step:>{width}}/{self._total_steps}  {text}")
        self._stage = activity.stage

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
