"""Says on a terminal what is being done, where it takes more than two seconds."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = ["tell", "working"]

SECONDS = 2.0  # of silence


class _Spinner:
    """A line with a spinner, which appears after some seconds, and is gone when it is stopped."""

    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._status: Status | None = None
        self._lock = threading.Lock()  # the timer has a thread of its own
        self._ended = False
        self._timer = threading.Timer(SECONDS, self._start)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, what: str) -> None:
        with self._lock:
            self._what = what
            if self._status is not None:
                self._status.update(what)

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._status is not None:
                self._status.stop()

    def _start(self) -> None:
        with self._lock:
            if not self._ended:
                self._status = self._console.status(self._what)
                self._status.start()


_spinner: _Spinner | None = None


@contextmanager
def working(what: str) -> Iterator[None]:
    """While it lasts, a terminal shows what is being done: `what`, or what was told last. Elsewhere nothing is shown.

    Within another one it tells.
    """
    global _spinner
    console = _terminal() if _spinner is None else None
    if console is None:
        tell(what)
        yield
        return
    _spinner = _Spinner(what, console)
    try:
        yield
    finally:
        ended, _spinner = _spinner, None
        ended.end()


def tell(what: str) -> None:
    """Says what is being done now, such as `tracing layer 3 of 12`."""
    if _spinner is not None:
        _spinner.tell(what)


def _terminal() -> Console | None:
    """The terminal of the standard error output; None where there is none, and on all ranks but the first."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return None
    if threading.current_thread() is not threading.main_thread():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console
