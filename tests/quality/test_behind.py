"""How many steps an arm is behind dense."""

import math

import pytest
from behind import Course, lag_of, lag_table, lags_over_time, steps_behind, steps_needed

TOTAL = 2000


def loss(step):
    return 1.2 + 30 * step**-0.7


def run(loss_at, stages=((0, 1.0),), held_out=1.0, steps=TOTAL, **train):
    settings = {"learning_rate_shape": "warmup_stable_decay", "learning_rate": 4e-3, "total_steps": TOTAL}
    settings |= {"decay_share": 0.2}
    starts = [start for start, _ in stages] + [steps]
    return {
        "steps": steps,
        "train_loss": [[step, loss_at(step)] for step in range(10, steps, 10)],
        "block_losses": [held_out, held_out],
        "stages": [
            {"start": start, "stop": stop, "flops_of_whole_model": share}
            for (start, share), stop in zip(stages, starts[1:], strict=True)
        ],
        "whole_steps": {
            "model": sum(share * (stop - start) for (start, share), stop in zip(stages, starts[1:], strict=True))
        },
        "config": {"train": settings | train},
    }


def test_the_course_of_a_loss_is_found_and_read_backwards():
    course = Course.of(run(loss))
    assert (course.floor, course.exponent) == pytest.approx((1.2, 0.7), abs=0.02)
    assert course.step_of(900, loss(600) - loss(900)) == pytest.approx(600, rel=0.01)
    assert course.step_of(900, -1.0) == math.inf  # a loss that dense never reaches


def test_an_arm_that_repeats_what_dense_did_so_many_steps_ago_is_behind_by_them():
    dense, arm = run(loss), run(lambda step: loss(max(10, step - 150)))
    assert steps_behind(arm, dense, Course.of(dense), 1200) == pytest.approx(150, rel=0.03)
    assert steps_behind(dense, dense, Course.of(dense), 1200) == pytest.approx(0, abs=1)


def test_a_lag_has_its_moments_and_an_end_by_held_out_losses():
    def behind(step):
        return 100 if step < 700 else 300 if step < 1000 else 200

    arm = run(lambda step: loss(max(10, step - behind(step))), ((0, 0.3), (700, 1.0)), held_out=1.1)
    results = {
        "dense": {0: run(loss)},
        "dense-short": {0: run(loss, held_out=1.2, steps=1500)},
        "arm": {0: arm, 1: arm},
    }
    lag = lag_of(results["arm"], results)
    assert (lag.seeds, lag.grown_at) == (1, 700)
    assert lag.saved == pytest.approx(0.7 * 700)
    assert (lag.before, lag.after, lag.held) == pytest.approx((100, 300, 200), rel=0.05)
    assert lag.end == pytest.approx(TOTAL * (1 - steps_needed(0.1, 0.2, 0.75)))
    assert lag.end == pytest.approx(TOTAL * (1 - math.sqrt(0.75)))
    assert lag_of(results["arm"], {"dense": results["dense"]}).end is None
    course = lags_over_time(results["arm"], results["dense"])
    assert (course[0][0], course[-1][0]) == (200, 1600)
    assert dict(course)[700] == lag.before
    assert course[-1][1] == lag.held
    (line,) = list(lag_table([("A model", {"arm": results["arm"]}, results)]))[2:]
    assert line.startswith("| A model | arm | 1 | 2,000 | 700 | 490 | ")
    assert line.endswith(f" | {lag.end:,.0f} |")


@pytest.mark.parametrize(
    ("stages", "train"),
    [
        (((0, 1.0),), {}),  # dense itself
        (((0, 0.5),), {}),  # never whole
        (((0, 1.0), (500, 0.5), (900, 1.0)), {}),  # whole before
        (((0, 0.5), (1550, 1.0)), {}),  # grows as the learning rate begins to fall
        (((0, 0.5), (900, 1.0)), {"learning_rate": 8e-3}),
        (((0, 0.5), (900, 1.0)), {"learning_rate_shape": "cosine"}),
    ],
)
def test_what_cannot_be_set_against_denses_steps_has_no_lag(stages, train):
    results = {"dense": {0: run(loss)}, "arm": {0: run(loss, stages, **train)}}
    assert lag_of(results["arm"], results) is None
    assert lags_over_time(results["arm"], results["dense"]) == []
    assert len(list(lag_table([("A model", results, results)]))) == 2
