"""Tests that take long take turns, and none is left out for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from long_tests import MOST_DAYS, days_between, is_due, stored_seconds


@pytest.mark.parametrize(("seconds", "days"), [(0.1, 1), (0.8, 1), (0.9, 2), (4, 5), (8.1, 11), (60, MOST_DAYS)])
def test_the_longer_a_test_takes_the_rarer_it_runs(seconds: float, days: int) -> None:
    assert days_between(seconds) == days
    for name in ("tests/a.py::test_a", "tests/b.py::test_b[3]"):
        due = [is_due(name, seconds, day) for day in range(20_000, 20_000 + 2 * days)]
        assert sum(due) == 2
        assert due[:days] == due[days:]


def test_the_names_are_those_of_tests() -> None:
    root = Path(__file__).parents[1]
    for name in stored_seconds():
        file, function = name.split("[")[0].split("::")[:2]
        assert f"def {function}(" in (root / file).read_text(encoding="utf-8"), f"{name}: pytest --write-long-tests"
