import json

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import estfx
from estfx.run_report import read_runs
from estfx.run_report.trained_units import trained_units


def units_of(folder):
    (run,) = read_runs([folder])
    return run, trained_units(run)


def rewrite_steps(folder, steps, **changes):
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    line = [line for line in lines if line["kind"] == "step"][-1]  # of the last stage
    metrics.write_text("".join(json.dumps(line | {"step": step} | changes) + "\n" for step in steps))


def test_counts_are_those_of_the_model_that_was_trained(evolving):
    run, trained = units_of(evolving)
    config = AutoConfig.for_model(run.config["model"]["name"], **run.config["model"]["config"])
    seed = run.config["train"]["seed"]
    model = estfx.transform(AutoModelForCausalLM.from_config(config), run.schedule, seed=seed, compile=False)
    layers = dict.fromkeys(trained.layers, 0)
    counts = {role.role: np.zeros((len(role.layers), role.sizes[0])) for role in trained.roles}
    for step in range(8):
        model.set_step(step)
        for name, runs in model.subnetwork.layers.items():
            layers[name] += runs
            for role, units in model.subnetwork.units.get(name, {}).items():
                counts[role][list(layers).index(name), units.numpy()] += 1
    assert trained.steps == trained.of == 8
    assert trained.share_of_layers.tolist() == [count / 8 for count in layers.values()]
    assert {role.role for role in trained.roles} == {"heads", "neurons"}
    for role in trained.roles:
        np.testing.assert_allclose(role.shares, counts[role.role] / 8)
        assert (role.least, role.most) == (counts[role.role].min() / 8, counts[role.role].max() / 8)
    assert trained.differing == 0
    assert not trained.everything


def test_a_whole_model_is_trained_at_every_step(whole):
    assert units_of(whole)[1].everything


def test_of_a_long_run_steps_are_chosen_evenly(evolving):
    rewrite_steps(evolving, range(100, 5100))
    _, trained = units_of(evolving)
    assert (trained.steps, trained.of, trained.first, trained.stop) == (2000, 5000, 100, 5100)
    assert trained.running.shape == (2, 250)
    assert trained.differing == 0


def test_draws_that_were_other_ones_are_told(evolving):
    rewrite_steps(evolving, range(4, 8), layers=1)
    assert units_of(evolving)[1].differing == 4


@pytest.mark.parametrize(("size", "columns"), [(600, 256), (100, 100)])
def test_many_units_share_columns(evolving, size, columns):
    made_with = json.loads((evolving / "made_with.json").read_text())
    first, second = made_with["layers"].values()
    first["neurons"] = second["neurons"] = size
    second["heads"] = 1  # fewer than in the first layer: stretched
    (evolving / "made_with.json").write_text(json.dumps(made_with))
    _, trained = units_of(evolving)
    heads, neurons = trained.roles
    assert neurons.shares.shape == (2, columns)
    assert neurons.shares.mean() == pytest.approx(neurons.mean, abs=0.01)
    assert heads.sizes == (2, 1)
    assert heads.shares[1, 0] == heads.shares[1, 1]
