"""The tables of the quality experiments."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tables
from experiment import Experiment
from tables import at_equal_seconds, difference, saved_at_equal_loss, seconds

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def result(steps, loss, ratios=(1.0,)):
    """A run of stages of equal length whose steps take so many seconds, and so large a share of the whole's FLOPs."""
    stages = [
        {"start": n, "stop": n + 1, "seconds_per_step": ratio, "flops_of_whole_model": ratio}
        for n, ratio in enumerate(ratios)
    ]
    return {"steps": steps, "block_losses": [loss, loss + 1], "stages": stages}


def test_dense_in_equal_seconds_lies_between_the_two_that_were_trained():
    results = {
        "dense": {0: result(100, 1.0), 1: result(100, 1.1)},
        "dense-short": {0: result(75, 1.4), 2: result(75, 5.0)},
        "est": {0: result(100, 1.2, (0.6, 1.0)), 1: result(100, 1.2, (0.6, 1.0))},
        "slow": {0: result(100, 1.2, (1.4, 1.0))},
        "constant": {0: result(100, 1.2, (0.6,))},
    }
    assert seconds(results["est"][0]) == 0.8
    (seed,) = at_equal_seconds(results["est"], results)
    assert seed == 0
    expected = 1.4 - 0.4 * math.log(0.8 / 0.75) / math.log(1 / 0.75)
    assert np.allclose(at_equal_seconds(results["est"], results)[0]["block_losses"], [expected, expected + 1])
    mean, *_ = difference(results["est"], at_equal_seconds(results["est"], results))
    assert mean == pytest.approx(1.2 - expected)
    assert at_equal_seconds(results["slow"], results) is None  # which dense was not trained for
    assert at_equal_seconds(results["constant"], results) is None  # no whole stage to compare with
    assert at_equal_seconds(results["est"], {"dense": results["dense"]}) is None


def with_flops(steps, loss, share=1.0):
    return result(steps, loss) | {"whole_steps": {"model": share * steps, "layers": share * steps}}


def test_what_is_saved_at_equal_loss_is_by_the_steps_that_dense_would_need():
    results = {"dense": {0: with_flops(100, 1.0)}, "dense-short": {0: with_flops(75, 1.4)}}

    def saving(loss, share):
        return saved_at_equal_loss({0: with_flops(100, loss, share)}, results)

    assert saving(1.0, 0.75) == pytest.approx((0.25,) * 3)  # as good as dense
    assert saving(1.4, 0.75) == pytest.approx((0.0,) * 3)  # as good as dense with as many FLOPs
    assert saving(1.2, 0.75) == pytest.approx((1 - 0.75**0.5,) * 3)  # dense needs 100 * 0.75 ** 0.5 steps
    assert saving(1.8, 0.75)[0] < 0 < saving(0.9, 0.75)[0] - 0.25
    other_seed = {1: with_flops(100, 1.0, 0.75)}
    assert saved_at_equal_loss(other_seed, results) is None
    worse = {"dense": results["dense-short"], "dense-short": results["dense"]}
    assert saved_at_equal_loss({0: with_flops(100, 1.0, 0.75)}, worse) is None


def test_an_arm_holds_if_its_interval_reaches_down_to_dense():
    def lines(*losses):
        runs = {n: {"tokens": 1000, "parameters": 10} | with_flops(100, loss, 0.75) for n, loss in enumerate(losses)}
        dense = {n: {"tokens": 1000, "parameters": 10} | with_flops(100, 1.0) for n in range(3)}
        short = {0: with_flops(75, 1.25)}
        experiment = Experiment(title="A model", run={}, arms={"dense": {"what": "it"}, "est": {"what": "part of it"}})
        return list(tables.summary([(experiment, {"dense": dense, "dense-short": short, "est": runs})]))[2:]

    assert lines() == []
    assert lines(1.1) == [
        "| A model | 100 | est | 1 | +0.1000 [+0.1000, +0.1000] | no | -0.1500 [-0.1500, -0.1500] "
        "| +0.1000 [+0.1000, +0.1000] | 25.0% | 25.0% |  | 15.9% [15.9%, 15.9%] |"
    ]
    assert "| yes |" in lines(0.9, 1.1, 1.2)[0]
    assert "| yes |" in lines(0.9)[0]


@pytest.mark.sweep(day=1, days=2)
def test_the_page_is_made_of_the_stored_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "plot", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--out", str(tmp_path / "quality.md")])
    tables.main()
    for name in ("quality.md", "quality-record.md"):
        stored = PAGE.with_name(name).read_text()
        assert (tmp_path / name).read_text() == stored, "run python benchmarks/quality/tables.py"
