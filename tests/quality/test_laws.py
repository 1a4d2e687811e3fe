"""Laws of how losses fall with the length of a run, and predictions that are made before the runs."""

import json
import math

import laws
import predictions
import pytest
from laws import Point


def made(values, batch=32):
    return [
        Point(f"run-{number}", steps, steps / 10, batch, value, 1)
        for number, (steps, value) in enumerate(values.items())
    ]


def test_a_power_law_is_found_again():
    points = made({steps: 200 * steps**-1.1 for steps in (500, 1000, 2000, 8000)})
    law = laws.fitted(points, "steps", logarithmic=True)
    assert law.slope == pytest.approx(-1.1 * math.log(2))
    value, low, high = law.at(4000)
    assert value == pytest.approx(200 * 4000**-1.1)
    assert low == pytest.approx(value)
    assert high == pytest.approx(value)
    assert law.extrapolates(100)
    assert not law.extrapolates(4000)
    assert law.extrapolates(9000)


def test_far_from_the_data_an_interval_is_wider():
    noise = {500: 1.2, 1000: 0.9, 2000: 1.1, 4000: 0.95, 8000: 1.0}
    law = laws.fitted(made({s: n * 200 / s for s, n in noise.items()}), "steps", logarithmic=True)

    def width(x):
        _, low, high = law.at(x)
        return math.log(high / low)

    assert width(2000) < width(8000) < width(100_000)


def test_a_line_in_the_logarithm_of_tokens():
    points = made({steps: 0.3 - 0.05 * math.log2(steps / 10) for steps in (250, 500, 1000)})
    assert laws.fitted(points, "tokens", logarithmic=False).at(200)[0] == pytest.approx(0.3 - 0.05 * math.log2(200))


def test_two_points_are_no_law():
    with pytest.raises(ValueError, match="three points at least; there are 2"):
        laws.fitted(made({500: 0.1, 1000: 0.05, 2000: -0.01}), "steps", logarithmic=True)


def test_predictions_were_made_of_runs_that_were_not_known():
    """The points that a prediction was made from hold none of what it predicts."""
    stored = json.loads(predictions.FILE.read_text())
    for row in stored["of"]:
        known = {point["experiment"] for point in stored["points"][row["arm"]]}
        assert row["experiment"] not in known
    assert len(list(predictions.prediction_table())) == 2 + len(stored["of"])


def test_a_floor_and_a_second_power_are_found_again():
    steps = (400, 1000, 2000, 4800, 8000, 19200)
    floor = [Point("run", n, n / 10, 32, 0.01 + 200 * n**-1.2, 1) for n in steps]
    form = laws.FORMS["steps, with a floor"]
    fit, _ = form.fit(floor)
    assert fit[-1] == pytest.approx(0.01, rel=0.01)
    assert -fit[1] == pytest.approx(1.2, rel=0.01)
    both = [Point("run", n, n * b / 10, b, 50 * n**-1.0 * b**-0.5, 1) for n in steps for b in (8, 32)]
    form = laws.FORMS["steps and sequences a step"]
    fit, errors = form.fit(both)
    assert -fit[1:] == pytest.approx([1.0, 0.5])
    assert errors == pytest.approx([0, 0, 0], abs=1e-6)
    assert form.left_out(both) == pytest.approx(1.0)
    assert laws.FORMS["steps"].left_out(both) > 1.2


def test_of_one_kind_of_run_there_is_one_point():
    kinds = [(point.steps, point.tokens, point.batch) for point in laws.points("est")]
    assert len(kinds) == len(set(kinds))


def test_a_law_is_dashed_where_there_are_no_runs(tmp_path):
    laws.picture("est", tmp_path / "law.svg")
    drawn = (tmp_path / "law.svg").read_text()
    assert "the same, extrapolated" in drawn
    assert "stroke-dasharray" in drawn


def test_a_schedule_at_another_rate_than_denses_is_no_point_of_a_law():
    def run(loss, rate):
        train = {"learning_rate": rate, "decay_share": 0.2, "learning_rate_shape": "warmup_stable_decay"}
        config = {"train": train | {"batch_size": 32}, "data": {"tokenizer": "bytes"}, "model": {"name": "gpt2"}}
        return {0: {"config": config, "block_losses": [loss], "steps": 100, "tokens": 1000, "parameters": 10}}

    same = laws.point_of("one", {"dense": run(1.0, 8e-3), "est": run(1.2, 8e-3)}, "est")
    assert same == Point("one", 100, 100.0, 32, pytest.approx(0.2), 1)
    assert laws.point_of("one", {"dense": run(1.0, 16e-3), "est": run(1.2, 8e-3)}, "est") is None
