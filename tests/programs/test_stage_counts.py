"""How many units a stage keeps: what is whole is not listed, so that stages that keep as many share their graphs."""

from __future__ import annotations

from estfx.graphs import tags
from estfx.graphs.dimensions import Axis
from estfx.programs.stage_counts import possible_counts, stage_counts
from estfx.schedules import Schedule, Stage

ROLES = tags.Roles((tags.Role("neurons", Axis(1, 8)), tags.Role("heads", Axis(0, 4))))


def test_what_is_whole_is_not_listed() -> None:
    stages = [
        Stage(start=0, heads=0.5, neurons=0.25),
        Stage(start=1, neurons=0.99),
        Stage(start=2, heads=0.75),
        Stage(start=3),
    ]
    schedule = Schedule(stages=stages)
    counts = [stage_counts(schedule, ROLES, stage) for stage in stages]
    assert counts == [(("heads", 2), ("neurons", 2)), (), (("heads", 3),), ()]
    assert [possible_counts(schedule, ROLES, stage) for stage in stages] == [{each} for each in counts]
