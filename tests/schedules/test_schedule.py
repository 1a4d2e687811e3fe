import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from estfx.errors import ScheduleError
from estfx.schedules.preset_by_name import PRESETS, default_preset, preset_schedule
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage


def stages(*starts):
    return [Stage(start=start) for start in starts]


def test_est_has_the_papers_stages():
    schedule = Schedule.est(150_000)
    assert schedule.stages == (
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
        Stage(start=20_000, heads=0.5, neurons=0.5),
        Stage(start=70_000),
    )
    assert schedule.total_steps == 150_000
    assert [stage.whole for stage in schedule.stages] == [False, False, True]


def test_est_saves_what_the_paper_says():
    schedule = Schedule.est(150_000)
    ends = [*(stage.start for stage in schedule.stages[1:]), schedule.total_steps]
    cost = sum(
        Fraction(stage.heads) * Fraction(stage.layers) * (end - stage.start)
        for stage, end in zip(schedule.stages, ends, strict=True)
    )
    assert 1 - cost / schedule.total_steps == Fraction(4, 15)  # 26.67 %


@given(st.integers(4, 10**9), st.floats(0.01, 1))
def test_est_works_from_four_steps_on(total_steps, keep):
    schedule = Schedule.est(total_steps, keep)
    assert len(schedule.stages) == 3
    assert schedule.stages[-1].start < total_steps


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_est_refuses_a_run_too_short_for_three_stages(total_steps):
    with pytest.raises(ScheduleError, match="at least 4 steps, or write the stages yourself"):
        Schedule.est(total_steps)


@pytest.mark.parametrize("total_steps", [0, -5, 1.5, True, "10"])
def test_total_steps_must_be_a_count(total_steps):
    with pytest.raises(ScheduleError, match="total_steps must be a whole number"):
        Schedule.est(total_steps)


def test_constant_is_one_stage():
    assert Schedule.constant(0.25).stages == (Stage(start=0, heads=0.25, neurons=0.25, layers=0.25),)
    assert Schedule.constant(0.25, np.int64(7)).total_steps == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": stages(0, 800, 500)}, "stage 3 starts at step 500, but stage 2 starts at 800; starts must rise."),
        ({"stages": stages(0, 5, 5)}, "stage 3 starts at step 5, but stage 2 starts at 5; starts must rise."),
        ({"stages": stages(3)}, "stage 1 starts at step 3; the first stage must start at step 0."),
        ({"stages": []}, "a schedule needs at least one stage"),
        ({"stages": stages(0, 9), "total_steps": 9}, "stage 2 starts at step 9, but the run ends after 9 steps"),
        ({"stages": stages(0), "total_steps": 0}, "total_steps must be greater than or equal to 1, got 0."),
        ({"stages": stages(0), "polcy": "random"}, "unknown key 'polcy'; did you mean 'policy'?"),
        (
            {"stages": stages(0), "policy": "best"},
            "unknown selection policy 'best'; known are random, rolling, weight_magnitude, "
            "weighted_gradient_magnitude, window.",
        ),
        ({"stages": stages(0), "policy": "rolling", "resample_every": "never"}, "a rolling window would stand still"),
        (
            {"stages": stages(0), "cycle_steps": 100},
            "cycle_steps is for the policy rolling; the policy random does not",
        ),
        ({"stages": [{"start": 0}, {"start": 5, "headz": 1}]}, "stage 2: unknown key 'headz'; did you mean 'heads'?"),
        ({"stages": [{"start": 0, "heads": 1.5}]}, "stage 1: heads must be less than or equal to 1, got 1.5."),
        ({"stages": 3}, "stages must be"),
        ({}, "'stages' is missing."),
    ],
)
def test_a_bad_schedule_is_refused_in_words(values, message):
    with pytest.raises(ScheduleError) as caught:
        Schedule(**values)
    assert message in str(caught.value)


def test_yaml_goes_there_and_back(tmp_path):
    schedule = Schedule(
        stages=Schedule.est(100).stages,
        total_steps=100,
        policy="window",
        neurons_multiple_of=8,
        skipped_layers="inverse_keep",
    )
    schedule.to_yaml(tmp_path / "schedule.yaml")
    assert Schedule.from_yaml(tmp_path / "schedule.yaml") == schedule


def test_a_bad_file_is_a_schedule_error_with_its_name(tmp_path):
    file = tmp_path / "schedule.yaml"
    file.write_text("stages: [{start: 0}, {start: 0}]")
    with pytest.raises(ScheduleError, match=r"schedule\.yaml: stage 2 starts at step 0, but stage 1 starts at 0"):
        Schedule.from_yaml(file)
    with pytest.raises(ScheduleError, match="no such file"):
        Schedule.from_yaml(tmp_path / "other.yaml")


def test_stage_at_finds_the_stage_in_force():
    schedule = Schedule(stages=stages(0, 10, 20), total_steps=30)
    assert [schedule.stage_at(step)[0] for step in (0, 9, 10, 19, 20, 29, 30, 10**12)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert schedule.stage_at(10)[1] is schedule.stages[1]


@pytest.mark.parametrize(
    "step", [-1, 1.0, True, False, np.bool_(True), "1", None, math.nan, torch.tensor([1, 2]), torch.tensor(1.0)]
)
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ScheduleError, match="counts optimizer steps from 0"):
        Schedule.est(100).stage_at(step)


@pytest.mark.parametrize("curve", ["linear", "cosine", "cubic"])
def test_a_growing_schedule_rises_to_the_whole(curve):
    shape = {"curve": curve, "num_stages": 5, "whole_until": 0.1, "whole_from": 7 / 15}
    schedule = Schedule.growing(1500, heads=0.25, layers=0.5, neurons=1.0, **shape)
    first, *parts, last = schedule.stages
    assert first.whole
    assert last == Stage(start=700)
    assert [stage.start for stage in parts] == [150, 260, 370, 480, 590]
    assert (parts[0].heads, parts[0].layers) == (0.25, 0.5)
    assert all(stage.neurons == 1 for stage in parts)
    for name in ("heads", "layers"):
        kept = [getattr(stage, name) for stage in parts]
        assert kept == sorted(set(kept))
        assert kept[-1] < 1
    if curve == "linear":
        assert np.allclose(np.diff([stage.heads for stage in parts]), 0.15)


def test_a_growing_schedule_may_have_no_whole_stage():
    schedule = Schedule.growing(100, heads=0.5, num_stages=2, whole_from=1.0)
    assert [(stage.start, stage.heads) for stage in schedule.stages] == [(0, 0.5), (50, 0.75)]


def test_by_default_one_part_is_drawn_that_grows():
    schedule = Schedule.growing(100)
    assert schedule.stages == (Stage(start=0, heads=0.25, neurons=0.25), Stage(start=35))
    assert (schedule.resample_every, schedule.kept_units, schedule.drawn_at(20)) == ("never", "as_is", 0)
    anew = Schedule.growing(100, resample_every=1, kept_units="scaled")
    assert (anew.stages, anew.drawn_at(20), anew.scales) == (schedule.stages, 20, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": "cubik"}, "unknown curve 'cubik'; did you mean 'cubic'?"),
        ({"whole_until": 0.6}, "whole_until=0.6 and whole_from=0.35"),
        ({"num_stages": 0}, "num_stages must be a whole number of at least 1, got 0"),
        ({"num_stages": 60}, "100 steps are too few: 60 stages would start at 0, 0, 1"),
        ({"heads": 0.0}, "heads must be greater than 0"),
        ({"layers": 1.5}, "layers must be"),
    ],
)
def test_a_growing_schedule_that_cannot_be_is_refused(options, message):
    with pytest.raises(ScheduleError) as caught:
        Schedule.growing(100, **options)
    assert message in str(caught.value)


def test_one_default_for_all_that_name_no_preset():
    assert preset_schedule(None, 100) == Schedule.compound(100)
    assert preset_schedule(None, 100, 0.6) == Schedule.compound(100, keep=0.6)
    assert preset_schedule(None, 100, loaded=True) == Schedule.growing(100)
    assert default_preset() in PRESETS
    with pytest.raises(ScheduleError, match="unknown preset 'ets'; did you mean 'est'"):
        preset_schedule("ets", 100)


def test_it_prints_its_stages():
    text = str(Schedule.est(150_000))
    assert text.startswith("3 stages over 150,000 steps\n")
    assert re.search(r"^ 2 +20,000 +50,000 +0\.5 +0\.5 +1$", text, re.MULTILINE)
    assert text.endswith("the part is drawn anew every step")
    assert "the rest" in str(Schedule.constant(0.5))
    assert str(Schedule.compound(100)).endswith("the part is drawn once")
    assert "anew every 5 steps" in str(Schedule(stages=[Stage(start=0)], resample_every=5))
