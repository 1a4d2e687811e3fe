"""What was measured of the presets, and a law that was fitted to it."""

import math

import pytest

from estfx.schedules import PRESETS, FittedLaw, KindOfRun, MeasuredLoss, MeasuredLosses, MeasuredRun, measured_losses


def loss(value, seeds=3):
    ends = (None, None) if seeds == 1 else (value - 0.01, value + 0.01)
    return MeasuredLoss(above_dense=value, low=ends[0], high=ends[1], seeds=seeds, saving=0.25, no_worse="not decided")


def kind(steps, tokens, parameters=1000, family="gpt2"):
    return {
        "family": family,
        "parameters": parameters,
        "steps": steps,
        "tokens_per_parameter": tokens,
        "tokens_per_step": 4096,
    }


def run(*args, family="gpt2", **presets):
    own = kind(*args, family=family)
    return MeasuredRun(title=f"A model of {own['parameters']}", dense_short=0.05, presets=presets, **own)


def planned(*args, **kwargs):
    return KindOfRun(**kind(*args, **kwargs))


def known(*runs):
    return MeasuredLosses(
        default="compound",
        default_won=1,
        default_of=2,
        default_rivals={"est": 2, "stacking": 1},
        laws=(),
        runs=runs,
    )


def test_the_nearest_run_is_by_ratios():
    short, long = run(1000, 20, est=loss(0.1)), run(8000, 160, est=loss(0.02), compound=loss(0.01))
    losses = known(short, long)
    assert losses.nearest(["est"], planned(2000, 40)) is short  # a factor of two, and four
    assert losses.nearest(["est"], planned(4000, 80)) is long
    assert losses.nearest(["compound"], planned(1000, 20)) is long  # the only one
    assert losses.nearest(["est", "compound"], planned(1000, 20)) is long  # with both
    assert losses.nearest(["growing"], planned(1000, 20)) is None


def test_a_run_of_the_same_family_is_nearer_than_any_other():
    gpt, llama = run(1000, 20, est=loss(0.1)), run(8000, 160, est=loss(0.1), family="llama")
    losses = known(gpt, llama)
    assert losses.nearest(["est"], planned(1000, 20, family="llama")) is llama
    assert losses.nearest(["est"], planned(1000, 20, family="qwen3")) is gpt  # none is of its family
    assert losses.nearest(["est"], planned(1000, 20, family=None)) is gpt


def test_a_run_with_more_seeds_is_better_than_one_that_is_a_little_nearer():
    nearer, more, far = run(3200, 20, est=loss(0.1, 1)), run(2000, 20, est=loss(0.1)), run(1000, 20, est=loss(0.1, 5))
    losses = known(nearer, more, far)
    assert losses.nearest(["est"], planned(100_000, 20)) is more
    assert known(nearer, far).nearest(["est"], planned(100_000, 20)) is nearer
    assert known(more, run(400, 20, est=loss(0.1, 1))).nearest(["est"], planned(45, 0.02)).steps == 400


def test_of_runs_that_are_as_near_the_one_with_most_seeds_is_taken_and_then_the_largest_model():
    one, more, larger = (
        run(1000, 20, 1000, est=loss(0.1, 1)),
        run(1000, 20, 500, est=loss(0.1, 3)),
        run(1000, 20, 2000, est=loss(0.1, 3)),
    )
    assert known(one, more).nearest(["est"], planned(1000, 20)) is more
    assert known(one, more, larger).nearest(["est"], planned(1000, 20)) is larger


def test_what_differs_from_the_run_is_named():
    there = run(3200, 20.4, 498_000)
    assert list(there.unlike(planned(6000, 12, 900_000))) == []
    assert list(there.unlike(planned(150_000, 9.88, 124_439_808, family="qwen3"))) == [
        "a qwen3 (there gpt2)",
        "120,000,000 parameters (there 500,000)",
        "150,000 steps (there 3,200)",
        "9.9 tokens a parameter (there 20)",
    ]
    assert list(there.unlike(planned(3200, 20, 498_000, family=None))) == []


def test_the_default_says_why_and_where_it_was_not_measured():
    losses = known(run(1000, 20, compound=loss(0.1)), run(8000, 160, compound=loss(0.1)))
    why = (
        "compound lost least in 1 of the 2 kinds of runs in which it was tried beside another schedule that saves as "
        "much (est in 2, stacking in 1)"
    )
    assert losses.why_default(planned(2000, 40)) == why
    assert losses.why_default(planned(32000, 160)) == (
        f"{why}; this run is unlike the nearest of them: 32,000 steps (there 8,000)"
    )


def test_a_law_is_surest_in_the_middle_of_its_points():
    law = FittedLaw(
        preset="est",
        family="gpt2",
        intercept=math.log(200),
        slope=-math.log(2),
        spread=0.1,
        mean=11,
        squares=4,
        points=5,
        quantile=3.18,
        first=1000,
        last=4000,
    )
    value, low, high = law.at(2048)
    assert value == pytest.approx(200 / 2048)
    assert low < value < high
    assert math.log(high / value) == pytest.approx(3.18 * 0.1 * math.sqrt(1.2))
    assert law.at(100_000)[2] / law.at(100_000)[0] > high / value


def test_what_the_package_holds_is_whole():
    losses = measured_losses()
    assert losses.default in PRESETS
    assert 0 < losses.default_won <= losses.default_of <= len(losses.runs)
    assert losses.default not in losses.default_rivals
    assert max(losses.default_rivals.values()) <= losses.default_of
    assert {name for each in losses.runs for name in each.presets} <= set(PRESETS)
    assert losses.law("est") is not None
    assert losses.law("dense") is None
    for each in losses.runs:
        for found in each.presets.values():
            assert (found.low is None) == (found.seeds < 3)
            assert 0.2 < found.saving < 0.3
            assert found.seeds >= 5 or found.no_worse == "not decided"
