"""Tests that take long take turns, and none is left out for good."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from long_tests import CYCLE, days_between, days_of, stored_seconds


@pytest.mark.parametrize(("seconds", "days"), [(0.1, 1), (1, 1), (1.1, 2), (4, 4), (8.1, CYCLE), (60, CYCLE)])
def test_the_longer_a_test_takes_the_rarer_it_runs(seconds: float, days: int) -> None:
    assert days_between(seconds) == days


def test_every_test_has_its_day_and_all_days_are_about_as_long() -> None:
    drawn = random.Random(0)
    seconds = {f"tests/test_{i}.py::test_{i}": drawn.uniform(0.5, 20) for i in range(200)}
    days = days_of(seconds)
    assert days == days_of(dict(reversed(seconds.items())))
    assert all(0 <= first < every for every, first in days.values())
    load = [sum(seconds[name] for name, (every, first) in days.items() if day % every == first) for day in range(CYCLE)]
    assert max(load) < 1.2 * min(load)
    assert days_of({"a": 0.9, "b": 0.9}, {"a": 3})["a"][0] == 4


def test_of_each_file_something_runs_every_day() -> None:
    seconds = {f"tests/test_{i % 5}.py::test_{i}": 2.0 + i % 3 for i in range(100)}
    days = days_of(seconds)
    for file in range(5):
        due = [
            [n for n, (every, first) in days.items() if f"_{file}.py" in n and day % every == first]
            for day in range(16)
        ]
        assert all(due)


def test_the_names_are_those_of_tests() -> None:
    root = Path(__file__).parents[1]
    for name in stored_seconds():
        file, function = name.split("[")[0].split("::")[:2]
        assert f"def {function}(" in (root / file).read_text(encoding="utf-8"), f"{name}: pytest --write-long-tests"
