"""The tables of the quality experiments."""

import json
import math
import sys
from pathlib import Path

import claims
import compared
import measured_map
import numpy as np
import pytest
import tables
from compared import at_equal_seconds, difference, saved_at_equal_loss, seconds
from core_hours import cost_table
from experiment import Experiment, found

from estfx.schedules import default_preset, measured_losses

EXPERIMENTS = Path(tables.__file__).parent / "experiments"
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
    found = difference(results["est"], at_equal_seconds(results["est"], results))
    assert found.mean == pytest.approx(1.2 - expected)
    assert at_equal_seconds(results["slow"], results) is None  # which dense was not trained for
    assert at_equal_seconds(results["constant"], results) is None  # no whole stage to compare with
    assert at_equal_seconds(results["est"], {"dense": results["dense"]}) is None


def with_flops(steps, loss, share=1.0):
    return result(steps, loss) | {"whole_steps": {"model": share * steps, "layers": share * steps}}


def test_what_is_saved_at_equal_loss_is_by_the_steps_that_dense_would_need():
    results = {"dense": {0: with_flops(100, 1.0)}, "dense-short": {0: with_flops(75, 1.4)}}

    def saving(loss, share):
        return saved_at_equal_loss({0: with_flops(100, loss, share)}, results)

    assert saving(1.0, 0.75)[0] == pytest.approx(0.25)  # as good as dense
    assert saving(1.4, 0.75)[0] == pytest.approx(0.0)  # as good as dense with as many FLOPs
    assert saving(1.2, 0.75)[0] == pytest.approx(1 - 0.75**0.5)  # dense needs 100 * 0.75 ** 0.5 steps
    assert saving(1.8, 0.75)[0] < 0 < saving(0.9, 0.75)[0] - 0.25
    other_seed = {1: with_flops(100, 1.0, 0.75)}
    assert saved_at_equal_loss(other_seed, results) is None
    worse = {"dense": results["dense-short"], "dense-short": results["dense"]}
    assert saved_at_equal_loss({0: with_flops(100, 1.0, 0.75)}, worse) is None


def runs_of(losses, steps=100, share=1.0):
    return {n: {"tokens": 1000, "parameters": 10} | with_flops(steps, loss, share) for n, loss in enumerate(losses)}


def test_a_line_of_the_table_says_what_may_be_claimed():
    def cells(*losses):
        dense = [1.0, 1.01, 0.99, 1.0, 1.0][: len(losses)]
        arm = [loss + each for loss, each in zip(losses, dense, strict=True)]
        results = {
            "dense": runs_of(dense),
            "dense-short": runs_of([each + 0.25 for each in dense], 75),
            "est": runs_of(arm, share=0.75),
        }
        experiment = Experiment(title="A model", run={}, arms={"dense": {"what": "it"}, "est": {"what": "part of it"}})
        return list(tables.summary([(experiment, results)]))[2].split(" | ")

    one = cells(0.1)
    assert one[3:7] == ["1", "+0.1000 (1 seed)", "", "not decided (1 of 5 seeds)"]
    assert one[7:9] == ["-0.1500 (1 seed)", "not decided (1 of 5 seeds)"]
    good = cells(0.001, -0.001, 0.002, 0.0, 0.001)
    assert good[6].startswith("holds")
    assert good[8].startswith("holds")
    assert "24." in good[-1]
    bad = cells(0.3, 0.31, 0.32, 0.3, 0.3)
    assert bad[6].startswith("does not")
    assert bad[8].startswith("does not")
    assert "none" in bad[-1]
    noisy = cells(-0.2, 0.2, -0.1, 0.1, 0.01)
    assert noisy[6].startswith("not decided")


def test_a_page_takes_its_figures_from_the_runs():
    results = {"one": {"dense": runs_of([1.0] * 3), "est": runs_of([1.1] * 3)}}
    page = "EST loses {{ above one est }}. {{ brief }}"
    assert tables.fill(page, {"brief": "A table."}, results) == "EST loses 0.100 [0.100, 0.100], 3 seeds. A table."
    with pytest.raises(KeyError, match="there is no run of it"):
        tables.fill("{{ above one grown }}", {}, results)
    with pytest.raises(KeyError):
        tables.fill("{{ another }}", {}, results)


def test_a_run_whose_held_out_text_is_another_is_refused():
    known = compared.blocks_known()["runs/quality/text"]
    of_bytes = known["tokens"]["bytes"]
    config = {"data": {"tokenizer": "bytes", "source": ["runs/quality/text/code.jsonl"]}}
    right = {"config": config, "text": {"kinds": {kind: {"hash": hash} for kind, hash in known["text"].items()}}}
    right |= {"block_losses": of_bytes["works"], "experiment": "one", "arm": "est", "seed": 3}
    assert compared.works_of(right) == (of_bytes["works"], of_bytes["kinds"])
    with pytest.raises(claims.Unlike, match=r"one: est \(seed 3\) has other held-out text"):
        compared.works_of(right | {"text": {"kinds": {"code": {"hash": "another"}}}})
    assert compared.works_of({"block_losses": [1.0]}) == ()  # of tokens whose blocks are not known


def test_losses_by_the_token_are_told_by_the_byte():
    per_token = json.loads((compared.RESULTS / "bpe-small-gpt2" / "dense-0.json").read_text())["block_losses"]
    (per_byte,) = (runs[0]["block_losses"] for arm, runs in compared.stored("bpe-small-gpt2").items() if arm == "dense")
    known = compared.blocks_known()["runs/quality/text"]["tokens"]
    assert known["bytes"]["bytes_per_token"] == 1
    assert 2 < known["runs/quality/text/bpe-2048"]["bytes_per_token"] < 5
    assert np.divide(per_token, per_byte) == pytest.approx(known["runs/quality/text/bpe-2048"]["bytes_per_token"])


def test_runs_that_were_not_trained_alike_are_refused():
    def run(arm, **train):
        config = {"train": {"learning_rate": 1e-3} | train, "data": {}, "model": {}}
        return with_flops(100, 1.0) | {"experiment": "one", "arm": arm, "seed": 0, "text": {}, "config": config}

    arms = {
        "dense": {"what": "it"},
        "est": {"what": "a part"},
        "est-2e-3": {"what": "a", "train": {"learning_rate": 2e-3}},
    }
    experiment = Experiment(title="A model", run={}, arms=arms)
    others = run("est-2e-3", learning_rate=2e-3)
    compared.check_runs(experiment, {"dense": {0: run("dense")}, "est": {0: run("est")}, "est-2e-3": {0: others}})
    with pytest.raises(claims.Unlike, match=r"est and dense \(seed 0\) differ in learning rate: 0.002 and 0.001"):
        compared.check_runs(experiment, {"dense": {0: run("dense")}, "est": {0: run("est", learning_rate=2e-3)}})
    other_text = run("est") | {"text": {"kinds": {}}}
    with pytest.raises(claims.Unlike, match="differ in text"):
        compared.check_runs(experiment, {"dense": {0: run("dense")}, "est": {0: other_text}})


def test_runs_of_another_experiment_are_what_the_arm_says():
    experiment = Experiment.from_yaml(found("tuned-mini-gpt2"))
    results = compared.stored("tuned-mini-gpt2")
    assert results["est"] == compared.stored("mini-gpt2")["est"]
    compared.check_runs(experiment, results)
    other_rate = results | {"est": compared.stored("rates-mini-gpt2")["est-4e-3"]}
    with pytest.raises(claims.Unlike, match=r"takes the runs of `mini-gpt2 est`.*learning_rate was 0.004, is 0.008"):
        compared.check_runs(experiment, other_rate)
    with pytest.raises(claims.Unlike, match="schedule"):
        compared.check_runs(experiment, results | {"est": compared.stored("mini-gpt2")["dense"]})


def test_the_map_in_the_package_is_that_of_the_stored_runs():
    """Runs that are made later may say another default, too."""
    known = measured_map.measured(measured_map.main_experiments())
    assert known == measured_losses(), "run python benchmarks/quality/tables.py"
    assert known.default == default_preset()


def test_an_arm_is_on_the_map_if_its_schedule_is_a_presets():
    def with_schedule(spent, **schedule):
        config = {"schedule": schedule, "train": {"total_steps": 1000}, "model": {"name": "gpt2"}}
        return {0: with_flops(1000, 1.1, spent) | {"seed": 0, "config": config}}

    moved = [{"start": 0, "heads": 0.5, "neurons": 0.5, "layers": 0.5}, {"start": 9, "heads": 0.5, "neurons": 0.5}]
    results = {
        "dense": {0: with_flops(1000, 1.0) | {"seed": 0, "config": {"schedule": {"preset": "dense"}, "train": {}}}},
        "the-papers": with_schedule(0.75, stages=[*moved, {"start": 20}]),
        "often": with_schedule(0.75, stages=[*moved, {"start": 20}], resample_every=100),
        "two": with_schedule(0.75, stages=moved),
        "grown": with_schedule(0.75, preset="growing"),
        "cheap": with_schedule(0.5, preset="compound"),  # saves too much to stand beside the others
    }
    found = measured_map.presets_of(results)
    assert found == {"est": results["the-papers"], "growing": results["grown"]}


def test_what_lost_least_is_told_over_the_seeds_that_two_have_in_common():
    one = {"est": runs_of([1.2]), "compound": runs_of([1.1]), "dense": runs_of([1.0])}
    alone = {"dense": runs_of([1.0]), "est": runs_of([1.2])}
    luckier = {"compound": runs_of([1.1, 1.3]), "grown": runs_of([1.15])}  # 1.2 on average, and better with seed 0
    nobody = {"compound": {0: with_flops(100, 1.0)}, "grown": {1: with_flops(100, 2.0)}}
    found = compared.contests([one, alone, luckier, nobody], ("est", "compound", "grown"))
    assert found == [
        ("compound", ("est", "compound")),
        ("compound", ("compound", "grown")),
        (None, ("compound", "grown")),
    ]


def test_two_seeds_have_no_interval():
    page = tables.fill(
        "{{ minus one est dense }}", {}, {"one": {"dense": runs_of([1.0] * 3), "est": runs_of([1.1] * 2)}}
    )
    assert page == "0.100 (2 seeds)"


@pytest.mark.sweep(day=1, days=2)
def test_the_page_is_made_of_the_stored_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "plot", lambda *_: None)
    monkeypatch.setattr(tables, "law_picture", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--out", str(tmp_path / "quality.md")])
    tables.main()
    for name in ("quality.md", "quality-record.md"):
        stored = PAGE.with_name(name).read_text()
        assert (tmp_path / name).read_text() == stored, "run python benchmarks/quality/tables.py"


def test_what_experiments_cost_is_added_up():
    run = {"steps": 3600, "environment": {"torch_threads": 2}}
    stages = [{"start": 0, "stop": 3600, "seconds_per_step": 1.0}]
    short = [{"start": 0, "stop": 2, "seconds_per_step": None}]  # all of it compiled
    first = {"experiment": "mini-one"} | run | {"stages": stages}
    every = {
        "mini-one": {"dense": {0: first, 1: first}},
        "mini-two": {"est": {0: {"experiment": "mini-two"} | run | {"stages": stages + short}}, "dense": {0: first}},
        "tiny-one": {"est": {0: {"experiment": "tiny-one"} | run | {"stages": short}}},
    }
    *_, mini, tiny, total = cost_table(every)
    assert mini == "| mini | 3 | 10,800 | 6.0 |"
    assert tiny == "| tiny | 1 | 3,600 | 0.0 |"
    assert total == "| all | 4 | 14,400 | 6.0 |"
