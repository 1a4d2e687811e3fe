"""Tests that take long take turns: each runs every few days, so that the suite as a whole stays short.

`long_tests.json` has their seconds, by their names; `pytest -n auto --every-case --write-long-tests` measures them. The
longer a test takes, the rarer it runs. Which tests share a day is chosen so that all days are about as long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CYCLE", "days_between", "days_of", "stored_seconds", "write_seconds"]

FILE = Path(__file__).with_name("long_tests.json")
LONG = 1.0  # seconds, which a test takes a day on the average
CYCLE = 16  # days, in which every test runs
ROOM = 15.0  # seconds, by which a day may become longer than the others


def days_between(seconds: float) -> int:
    """Every how many days a test runs that takes so long: a power of two, so that turns come again after a cycle."""
    return next((days for days in (1, 2, 4, 8) if seconds <= days * LONG), CYCLE)


def days_of(seconds: Mapping[str, float], least: Mapping[str, int] | None = None) -> dict[str, tuple[int, int]]:
    """For each test every how many days it runs, and on which day first; `least` has fewest days for some of them.

    The longest come first, on days that have little to do so far. Of these it takes those on which least of its own
    file runs, so that every day runs something of each file.
    """
    least = least or {}
    load = [0.0] * CYCLE
    by_file: dict[str, list[float]] = {}
    chosen = {}
    for name in sorted(seconds, key=lambda name: (-seconds[name], name)):
        days = days_between(max(seconds[name], least.get(name, 1) * LONG))
        own = by_file.setdefault(name.partition("::")[0], [0.0] * CYCLE)
        fullest = [max(load[day::days]) for day in range(days)]
        free = [day for day in range(days) if fullest[day] <= min(fullest) + ROOM]
        first = min(free, key=lambda day: (sum(own[day::days]), fullest[day]))
        for day in range(first, CYCLE, days):
            load[day] += seconds[name]
            own[day] += seconds[name]
        chosen[name] = (days, first)
    return chosen


def stored_seconds() -> dict[str, float]:
    found: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write_seconds(measured: Mapping[str, float]) -> None:
    """Stores what was measured; a test that was not, as one that was left out, keeps what it had."""
    seconds = {**stored_seconds(), **measured}
    long = {name: round(seconds[name], 1) for name in sorted(seconds) if seconds[name] > LONG}
    FILE.write_text(json.dumps(long, indent=1) + "\n", encoding="utf-8")
