"""How a run that is resumed with something else is told what differs."""

from __future__ import annotations

from typing import Any

import pytest

from estfx.runtime.run_fingerprint import differences
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage


def schedule(*stages: Stage, **changes: Any) -> dict[str, Any]:
    return {"schedule": Schedule(stages=stages, total_steps=300, **changes).model_dump(mode="json"), "seed": 0}


FIRST, SECOND, THIRD = Stage(start=0, heads=0.5), Stage(start=40, heads=0.5), Stage(start=140)


def test_nothing_differs_from_itself() -> None:
    assert differences(schedule(FIRST, SECOND), schedule(FIRST, SECOND)) == []


def test_stages_of_the_same_number_are_compared_one_by_one() -> None:
    later = Stage(start=50, heads=0.5)
    assert differences(schedule(FIRST, SECOND, THIRD), schedule(FIRST, later, THIRD)) == [
        "schedule.stage 2.start was 40, is 50"
    ]


def test_a_stage_more_is_told_and_what_differs_in_the_others() -> None:
    now = schedule(FIRST, Stage(start=50, heads=0.5), THIRD, Stage(start=200, heads=0.75))
    assert differences(schedule(FIRST, SECOND, THIRD), now) == [
        "schedule.stages: there were 3, now there are 4",
        "schedule.stage 2.start was 40, is 50",
        "schedule.stage 4 is new: start 200, heads 0.75, neurons 1.0, layers 1.0",
    ]


def test_a_stage_less_is_told() -> None:
    assert differences(schedule(FIRST, SECOND, THIRD), schedule(FIRST, SECOND)) == [
        "schedule.stages: there were 3, now there are 2",
        "schedule.stage 3 is gone: start 140, heads 1.0, neurons 1.0, layers 1.0",
    ]


def test_what_is_only_on_one_side() -> None:
    assert differences({"a": None, "b": 1}, {"a": [1], "c": 2}) == ["a is new: [1]", "b is gone: 1", "c is new: 2"]


@pytest.mark.parametrize("side", [0, 1])
def test_long_values_show_the_place_where_they_differ(side: int) -> None:
    same = "/a/folder/with/a/long/name" * 5
    pair = [{"file": f"{same}/one.txt"}, {"file": f"{same}/another.txt"}]
    (line,) = differences(pair[side], pair[1 - side])
    assert line.startswith("file was ...")
    assert "/one.txt" in line
    assert "/another.txt" in line
    assert len(line) < 100


def test_after_five_the_rest_is_counted() -> None:
    lines = differences({"layers": dict.fromkeys("abcdefg", 1)}, {"layers": dict.fromkeys("abcdefg", 2)})
    assert lines[0] == "layers.a was 1, is 2"
    assert lines[5:] == ["and 2 more"]
