"""Has what the next step needs made in a thread, while the present step trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar

__all__ = ["BackgroundDraws"]

T = TypeVar("T")


class BackgroundDraws(Generic[T]):
    """Gives `make(step)`, a pure function of the step; the step after the last that was asked for is begun already."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make
        self._begun: tuple[int, int, Future[T]] | None = None  # process, step

    def of(self, step: int) -> T:
        """What `make` gives for a step."""
        begun, self._begun = self._begun, None
        own = (os.getpid(), step)
        made = begun[2].result() if begun is not None and begun[:2] == own else self.make(step)
        self._begun = (os.getpid(), step + 1, _thread(os.getpid()).submit(self.make, step + 1))
        return made

    def forget(self) -> None:
        """What was begun is not to be used: what it depends on has changed."""
        self._begun = None


@cache
def _thread(process: int) -> ThreadPoolExecutor:
    """A thread of this process: one that was forked has none of the threads of the other."""
    return ThreadPoolExecutor(1, "estfx-draws")
