"""Tests that take long take turns: each runs every few days, so that the suite as a whole stays short.

`long_tests.json` has their seconds, by their names; `pytest -n auto --every-case --write-long-tests` measures them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

__all__ = ["days_between", "is_due", "stored_seconds", "write_seconds"]

FILE = Path(__file__).with_name("long_tests.json")
LONG = 0.8  # seconds; what takes twice as long runs every second day, and so on
MOST_DAYS = 14


def days_between(seconds: float) -> int:
    """Every how many days a test runs that takes so long."""
    return min(MOST_DAYS, max(1, math.ceil(seconds / LONG)))


def is_due(name: str, seconds: float, day: int) -> bool:
    """Whether a test runs on a day. Which day it is differs from test to test."""
    days = days_between(seconds)
    return crc32(name.encode()) % days == day % days


def stored_seconds() -> dict[str, float]:
    found: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write_seconds(measured: Mapping[str, float]) -> None:
    """Stores what was measured; a test that was not, as one that was left out, keeps what it had."""
    seconds = {**stored_seconds(), **measured}
    long = {name: round(seconds[name], 1) for name in sorted(seconds) if seconds[name] > LONG}
    FILE.write_text(json.dumps(long, indent=1) + "\n", encoding="utf-8")
