import json

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.settings import SettingsError
from estfx.training.learning_rate import LearningRate
from estfx.training.model_spec import build_model
from estfx.training.train_config import RunConfig

TOTAL, WARMUP = 60, 6
STAGES = [Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=12, heads=0.5, neurons=0.5), Stage(start=30)]


@pytest.fixture(scope="module")
def plan():
    model = build_model("gpt2", {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 32}).model
    return estfx.plan(model, Schedule(stages=STAGES, total_steps=TOTAL), batch_size=2, seq_len=16)


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("shape", "reference"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_over_the_steps_it_is_what_transformers_has(plan, shape, reference):
    theirs = reference(optimizer(), WARMUP, TOTAL)
    ours = LearningRate(plan, WARMUP, shape)
    for step in range(TOTAL + 1):
        assert ours(step) == pytest.approx(theirs.lr_lambdas[0](step), abs=1e-15)


def test_stable_until_the_last_fifth(plan):
    rate = LearningRate(plan, WARMUP, "warmup_stable_decay")
    assert [rate(step) for step in (0, 3, 6, 30, 49)] == [0, 0.5, 1, 1, 1]
    last = [rate(step) for step in (TOTAL - 6, TOTAL - 3, TOTAL, TOTAL + 5)]
    assert last == pytest.approx([6 / 10.8, 3 / 10.8, 0, 0])


def test_stable_until_the_share_that_is_asked_for(plan):
    rate = LearningRate(plan, WARMUP, "warmup_stable_decay", decay_share=0.5)
    middle = (TOTAL + WARMUP) // 2
    assert rate(middle) == 1
    assert rate(middle + (TOTAL - middle) // 3) == pytest.approx(1 - (TOTAL - middle) // 3 / (TOTAL - middle))
    with pytest.raises(SettingsError, match="with cosine the rate falls from the warm-up on"):
        RunConfig.load(None, ["train.decay_share=0.5"])


def test_with_flops_it_falls_as_far_as_the_run_has_spent(plan):
    rate = LearningRate(plan, 0, "linear", "flops")
    for step in (0, 5, 12, 20, 30, 45, 60):
        assert rate(step) == pytest.approx(1 - plan.flops_until(step) / plan.flops_until(TOTAL))
    assert rate(30) > LearningRate(plan, 0, "linear")(30)  # the small stages cost little


def test_each_later_stage_is_warmed_up(plan):
    plain, rate = LearningRate(plan, WARMUP, "linear"), LearningRate(plan, WARMUP, "linear", rewarm_steps=3)
    assert [rate(step) / plain(step) for step in (6, 11, 12, 13, 14, 15, 29, 30, 33)] == pytest.approx(
        [1, 1, 0.25, 0.5, 0.75, 1, 1, 0.25, 1]
    )


def test_a_run_has_the_rates_of_its_settings(tmp_path):
    from rich.console import Console

    from estfx.training.training_run import train

    settings = {
        "train.total_steps": 12,
        "train.batch_size": 2,
        "train.warmup_steps": 2,
        "train.compile": "false",
        "train.learning_rate": 0.01,
        "train.learning_rate_shape": "warmup_stable_decay",
        "train.decay_share": 0.4,
        "train.learning_rate_falls_with": "flops",
        "train.rewarm_steps": 1,
        "train.optimizer_state": "reset",
        "train.save_every": 5,
        "data.seq_len": 16,
        "data.held_out_blocks": 2,
        "model.config": "{n_layer: 2, n_embd: 16, n_head: 2}",
    }
    (tmp_path / "text.txt").write_text("To be trained on, and then to be held out. " * 200)
    settings["data.source"] = tmp_path / "text.txt"
    config = RunConfig.load(None, [f"{key}={value}" for key, value in settings.items()])
    train(config, tmp_path / "run", Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] / 0.01 for line in lines if line["kind"] == "step"]
    resolved = config.resolved()
    plan = estfx.plan(
        build_model(resolved.model.name, resolved.model.config).model,
        resolved.schedule.build(12),
        batch_size=2,
        seq_len=16,
    )
    rule = LearningRate(plan, 2, "warmup_stable_decay", "flops", rewarm_steps=1, decay_share=0.4)
    assert rates == pytest.approx([rule(step) for step in range(12)])
    assert 0.5 in rates  # where a later stage begins
    scheduler = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-10" / "scheduler.json").read_text())
    assert scheduler["last_epoch"] == 10
