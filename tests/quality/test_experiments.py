"""The harness of the quality experiments: what is equal to what, and what is counted."""

import math
import pathlib
import random
from pathlib import Path

import experiment as experiments
import numpy as np
import pytest
import run as runs
import torch
from compared import difference
from evaluate import TASKS, Item, block_losses, items_of, ranked
from experiment import Experiment, Plans, found
from transformers import LlamaConfig, LlamaForCausalLM

from estfx.settings import SettingsError
from estfx.training.text_data import Tokens

QUALITY = Path(experiments.__file__).parent
RUN = {
    "model": {"name": "gpt2", "config": {"n_layer": 4, "n_embd": 32, "n_head": 4}},
    "data": {"seq_len": 16},
    "train": {"total_steps": 100, "batch_size": 2, "warmup_steps": 5},
}
ARMS = {
    "dense": {"what": "whole", "schedule": {"preset": "dense"}},
    "est": {"what": "stages", "schedule": {"preset": "est"}},
    "constant": {"what": "part", "schedule": {"preset": "constant"}, "equal_flops": "est"},
    "grown": {
        "what": "a part that grows",
        "schedule": {"stages": [{"start": 0, "neurons": 0.25}, {"start": 10, "heads": 0.5}, {"start": 30}]},
        "equal_flops": "est",
    },
    "dense-short": {"what": "few steps", "schedule": {"preset": "dense"}, "equal_flops": "est"},
    "dense-stopped": {"what": "stopped", "stopped": "dense", "equal_flops": "est"},
}


@pytest.fixture
def plans():
    return Plans("test", Experiment(title="test", run=RUN, arms=ARMS, seeds=[0, 1]))


def spent(plans, arm):
    config = plans.config(arm)
    plan = plans._plan_of(config.schedule.build(config.train.total_steps))
    return sum(stage.steps * stage.flops_model for stage in plan.stages)


@pytest.mark.sweep(day=1, days=2)
def test_arms_at_equal_flops_spend_the_same(plans):
    whole = spent(plans, "dense") / 100
    assert spent(plans, "est") < 80 * whole
    assert abs(spent(plans, "constant") - spent(plans, "est")) < whole  # a step at most
    assert abs(spent(plans, "dense-short") - spent(plans, "est")) < whole
    assert abs(spent(plans, "grown") - spent(plans, "est")) < whole
    assert [stage.neurons for stage in plans.config("grown").schedule.stages] == [0.25, 1, 1]
    assert plans.config("dense-short").train.total_steps == plans.stops("dense")["dense-stopped"] < 100
    (stage,) = plans.config("constant").schedule.stages
    assert 0.5 < min(stage.heads, stage.neurons, stage.layers) < 1


def test_an_arm_that_is_another_one_stopped_is_not_run(plans):
    assert [(run.arm, run.seed) for run in plans.runs()] == [
        (arm, seed) for seed in (0, 1) for arm in ("dense", "est", "constant", "grown", "dense-short")
    ]


@pytest.mark.sweep(day=1, days=2)
def test_what_is_solved_is_written_down_once(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RUNS", tmp_path)
    first = plans.solved("dense")
    assert first.stops == plans.stops("dense")
    monkeypatch.setattr(Plans, "config", None)  # it would be asked again otherwise
    assert plans.solved("dense") == first


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": {"what": "", "equal_flops": "b"}}, "arm a speaks of an arm 'b'; known are a."),
        ({"a": {"what": "", "stopped": "a"}}, "needs equal_flops"),
        ({"a": {"what": "", "equal_flops": "b"}, "b": {"what": "", "equal_flops": "c"}, "c": {"what": ""}}, "depends"),
    ],
)
def test_refusal_of_arms_that_depend_on_nothing(arms, message):
    with pytest.raises(SettingsError, match=message):
        Experiment(title="test", run=RUN, arms=arms)


def test_refusal_of_an_unknown_experiment():
    with pytest.raises(SettingsError, match="there is no experiment 'small-gpt'; did you mean 'small-gpt2'"):
        found("small-gpt")


def test_refusal_of_runs_that_are_not_named_in_full():
    with pytest.raises(SettingsError, match="takes an experiment and its arm, as in `mini-gpt2 est`; it is 'est'"):
        Experiment.from_mapping({"title": "A", "run": {}, "arms": {"dense": {"what": "it", "same_as": "est"}}})


def test_runs_of_another_experiment_are_not_made_again():
    tuned = Plans.load(found("tuned-mini-gpt2"))
    assert all(arm.same_as for arm in tuned.experiment.arms.values())
    assert not list(tuned.runs())


@pytest.mark.parametrize("path", sorted((QUALITY / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_of_the_repository_are_valid(path):
    experiment = Experiment.from_yaml(path)
    if experiment.beside is not None:
        other = Experiment.from_yaml(found(experiment.beside))
        assert other.run == experiment.run
        assert not other.arms.keys() & experiment.arms.keys()
    else:
        assert "dense" in experiment.arms or "rates" in path.stem


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=64, **sizes)).eval()


def test_a_run_of_other_settings_is_not_taken_for_the_arm(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RUNS", tmp_path)
    run = next(plans.runs())
    config = plans.config(run.arm)
    runs.refuse_another(run, config)  # nothing is there yet
    run.folder.mkdir(parents=True)
    config.to_yaml(run.folder / "config.yaml")
    runs.refuse_another(run, config)
    other = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 1.0})})
    with pytest.raises(SettingsError, match=r"begun with something else: train.learning_rate.*Remove the folder"):
        runs.refuse_another(run, other)


def test_block_losses_are_the_models_own():
    tokens_N = np.random.default_rng(0).integers(257, size=20 * 16 + 5)
    losses = block_losses(model(), tokens_N, 16, 5)
    assert len(losses) == 5
    for loss, block in zip(losses, (0, 5, 10, 14, 19), strict=True):
        tokens = torch.tensor(tokens_N[16 * block : 16 * block + 16])[None]
        assert loss == pytest.approx(model()(input_ids=tokens, labels=tokens).loss.item(), abs=2e-6)


def test_the_likeliest_continuation_wins():
    net = model()
    context = tuple(range(20, 40))
    likely = int(net(input_ids=torch.tensor([context])).logits[0, -1].argmax())
    others = tuple((token,) for token in range(100, 103) if token != likely)
    assert ranked(net, [Item(context, ((likely,), *others)), Item(context, (*others, (likely,)))]) == [True, False]


@pytest.mark.parametrize("task", TASKS)
def test_items_hold_the_truth_first_and_fit(task):
    texts = [Path(random.__file__).read_text(), Path(pathlib.__file__).read_text()]
    items = items_of(texts, Tokens(), task, 30, 240)
    assert len(items) == 30
    assert items == items_of(texts, Tokens(), task, 30, 240)
    for item in items:
        assert len(item.choices) == len(set(item.choices)) == 4
        assert all(len(item.context) + len(choice) <= 240 for choice in item.choices)
    if task != "copy":  # there the truth is elsewhere in the text
        whole = [bytes((*item.context, *item.choices[0])).decode(errors="ignore") for item in items]
        assert all(any(each in text for text in texts) for each in whole)


def test_a_difference_is_of_the_same_seeds_and_blocks():
    rng = np.random.default_rng(0)
    base = {seed: {"block_losses": rng.normal(4, 1, size=500).tolist()} for seed in range(4)}
    worse = {seed: {"block_losses": (np.array(base[seed]["block_losses"]) + 0.1).tolist()} for seed in (1, 2, 3)}
    found = difference(worse, base)
    assert found.by_seed == pytest.approx((0.1, 0.1, 0.1))
    assert found.interval() == pytest.approx((0.1, 0.1))
    assert difference(worse, base, seeds=[0, 1, 3]).seeds == 2
    assert math.isinf(difference(worse, base, seeds=[0, 1, 3]).interval()[1])  # two that agree say too little
    assert difference({5: base[0]}, base) is None
