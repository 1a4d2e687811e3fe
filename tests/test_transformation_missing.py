"""What a user is told of a schedule that asks for more than a model has."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hand_written import Residual, Stack, stream

import estfx
from estfx.report import AxisReport, LayerReport, Report
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.transformation import missing

EST = Schedule.est(total_steps=30)


def report(*roles: str, droppable: bool = True, notes: tuple[str, ...] = ()) -> Report:
    axes = [AxisReport(role=role, size=8, parameters={}) for role in roles]
    layer = LayerReport(name="h.0", program="Block", droppable=droppable, axes=axes, notes=list(notes))
    return Report(model="Model", layers=[layer])


def alone(**fractions: float) -> Schedule:
    return Schedule(stages=[Stage(start=0, **fractions), Stage(start=10)])


CALM = [(logging.INFO, "`Model` has no heads; the schedule narrows the rest")]
NO_HEADS = "the schedule narrows heads, but none were found in `Model`; they stay whole"
NO_LAYERS = "the schedule skips layers, but none of `Model` can be skipped; they all run"


@pytest.mark.parametrize(
    ("schedule", "found", "lines"),
    [
        (EST, report("heads", "neurons"), []),
        (EST, report("channels", "neurons"), []),  # count as heads
        (EST, report("neurons"), CALM),
        (Schedule.constant(0.5), report("neurons"), CALM),
        (alone(neurons=0.5), report("neurons"), []),
        (alone(neurons=0.5), report("neurons", droppable=False), []),
    ],
)
def test_a_schedule_that_narrows_everything_alike_is_calm(schedule: Schedule, found: Report, lines: Any) -> None:
    assert missing(schedule, found) == lines


def test_without_heads_and_neurons_a_stage_of_est_would_train_the_whole_and_that_is_warned_of() -> None:
    levels, lines = zip(*missing(EST, report()), strict=True)
    assert set(levels) == {logging.WARNING}
    assert [line.split(",")[0] for line in lines] == ["the schedule narrows heads", "the schedule narrows neurons"]


@pytest.mark.parametrize(
    ("schedule", "found", "start"),
    [
        (alone(heads=0.5), report("neurons"), NO_HEADS),
        (alone(heads=0.5, neurons=0.75), report("neurons"), NO_HEADS),
        (EST, report("neurons", notes=("heads (8) stay whole: narrowing them failed verification",)), NO_HEADS),
        (EST, report("neurons", notes=("a dimension of 96 stays whole: no rule for the operator",)), NO_HEADS),
        (EST, report("heads", "neurons", droppable=False), NO_LAYERS),
    ],
)
def test_what_was_meant_or_is_there_and_cannot_be_is_warned_of(schedule: Schedule, found: Report, start: str) -> None:
    ((level, line),) = missing(schedule, found)
    assert level == logging.WARNING
    assert line == f"{start}. model.report says why."


@pytest.mark.parametrize(("schedule", "warned"), [(EST, False), (alone(heads=0.5, neurons=0.75), True)])
def test_transform_logs_it(schedule: Schedule, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = Stack(Residual())
    with caplog.at_level(logging.INFO, logger="estfx.transformation"):
        estfx.transform(model, schedule, example_inputs=(stream(),), compile=False)
    told = [(record.levelno, "no heads" in record.message) for record in caplog.records]
    assert told == ([(logging.WARNING, False)] if warned else [(logging.INFO, True)])
