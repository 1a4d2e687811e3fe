import json
import math

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from estfx.schedules.measured_losses import measured_losses
from estfx.settings import SettingsError
from estfx.training.document_sources import documents
from estfx.training.run_folder import default_folder
from estfx.training.text_data import Blocks, corpus_of
from estfx.training.train_config import RunConfig
from estfx.training.train_recorder import TrainingFailedError
from estfx.training.training_run import train

TINY = (
    "model.config.num_hidden_layers=2",
    "model.config.hidden_size=16",
    "model.config.num_attention_heads=2",
    "data.seq_len=16",
    "data.held_out_blocks=4",
    "train.batch_size=2",
    "train.total_steps=8",
    "train.warmup_steps=2",
    "train.compile=false",
)


def run(folder, *overrides):
    return train(RunConfig.load(None, [*TINY, *overrides]), folder, Console(quiet=True))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "gpt2"
    return folder, run(folder)


def test_every_step_is_written_down(finished):
    folder, _ = finished
    steps = [line for line in lines_of(folder) if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(8))
    assert [line["stage"] for line in steps] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [line["layers"] for line in steps] == [1, 1, 2, 2, 2, 2, 2, 2]
    assert [line["heads"] for line in steps] == [1, 1, 4, 4, 4, 4, 4, 4]  # three quarters of two heads are two
    assert [line["neurons"] for line in steps] == [32, 32, 96, 96, 128, 128, 128, 128]
    assert all(math.isfinite(line["loss"]) and line["seconds"] > 0 and line["tokens"] == 32 for line in steps)
    assert steps[0]["flops"] < steps[2]["flops"] < steps[4]["flops"]


@pytest.mark.sweep("every", days=3)
@pytest.mark.parametrize(("every", "steps"), [("null", range(9)), ("3", [0, 3, 6, 8]), ("never", [0, 8])])
def test_held_out_losses_are_taken_on_the_way_and_at_the_end(tmp_path, every, steps):
    summary = run(tmp_path / "run", f"train.eval_every={every}")
    taken = {line["step"]: line["held_out_loss"] for line in lines_of(tmp_path / "run") if line["kind"] == "eval"}
    assert list(taken) == list(steps)
    assert summary["held_out_loss"]["after"] == taken[8]


def test_a_part_is_drawn_anew_at_every_step(tmp_path):
    run(tmp_path / "est", "schedule.preset=est")
    steps = [line for line in lines_of(tmp_path / "est") if line["kind"] == "step"]
    assert [line["stage"] for line in steps] == [1, 2, 2, 2, 3, 3, 3, 3]
    assert [line["heads"] for line in steps] == [1, 2, 2, 2, 4, 4, 4, 4]
    assert [line["neurons"] for line in steps] == [32, 64, 64, 64, 128, 128, 128, 128]


def test_the_summary_holds_the_figures(finished):
    folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    before, *_, after = [line["held_out_loss"] for line in lines_of(folder) if line["kind"] == "eval"]
    assert (summary["held_out_loss"]["before"], summary["held_out_loss"]["after"]) == (before, after)
    assert after < before
    assert 0 < summary["flops_saved"]["model"] < summary["flops_saved"]["layers"] < 1
    assert summary["steps"] == 8
    assert len(summary["stages"]) == 3


@pytest.mark.parametrize("blocks", [1, 3])
def test_every_held_out_block_counts(tmp_path, blocks):
    summary = run(tmp_path / "run", "data.seq_len=32", f"data.held_out_blocks={blocks}", "train.total_steps=4")
    assert summary["held_out_loss"]["tokens"] == blocks * 31
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    held_out = Blocks(corpus_of(documents(["standard-library"], "text")).held_out, 32, blocks)
    chosen = [held_out[i] for i in range(blocks)]
    batch = {key: torch.stack([block[key] for block in chosen]) for key in chosen[0]}
    assert model(**batch).loss.item() == pytest.approx(summary["held_out_loss"]["after"], rel=1e-4)


def test_the_checkpoint_is_an_ordinary_one(finished):
    folder, summary = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(model).__module__.startswith("transformers.")
    assert sum(parameter.numel() for parameter in model.parameters()) == summary["parameters"]
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 257)


@pytest.mark.sweep(day=1, days=2)
def test_the_resolved_configuration_repeats_the_run(finished, tmp_path):
    folder, _ = finished
    again = RunConfig.load(folder / "config.yaml")
    assert again.schedule.stages is not None
    train(again, tmp_path / "again", Console(quiet=True))
    losses = [
        [line["loss"] for line in lines_of(each) if line["kind"] == "step"] for each in (folder, tmp_path / "again")
    ]
    assert losses[0] == losses[1]


@pytest.mark.sweep(day=0, days=2)
def test_a_llama_trains_as_well(tmp_path):
    summary = run(
        tmp_path, "model.name=llama", "model.config.num_key_value_heads=2", "model.config.intermediate_size=32"
    )
    assert summary["held_out_loss"]["after"] < summary["held_out_loss"]["before"]


def test_a_lost_loss_stops_the_run(tmp_path):
    with pytest.raises(TrainingFailedError, match=r"the loss is (nan|inf) at step"):
        run(tmp_path, "train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.warmup_steps=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.config.vocab_size=100", "bytes as tokens need at least 257"),
        ("model.config.n_positions=8", "takes 8 positions, but data.seq_len is 16"),
        ("model.name=gpt3", "unknown model 'gpt3'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(tmp_path, override, message):
    with pytest.raises(SettingsError) as caught:
        run(tmp_path, override)
    assert message in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_model_of_another_library_is_refused(tmp_path):
    (tmp_path / "models.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(2, 2)\n")
    config = RunConfig.load(None, [f"model.name={tmp_path}/models.py:make"])
    with pytest.raises(SettingsError, match="trains models of transformers"):
        train(config, tmp_path / "run", Console(quiet=True))


def test_a_machine_without_a_compiler_trains_uncompiled_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("estfx.training.training_run.why_not_compiled", lambda device: "OSError: no g++")
    summary = train(
        RunConfig.load(None, [*TINY, "train.compile=auto", "train.total_steps=4"]), tmp_path, Console(stderr=True)
    )
    assert summary["compiled"] is False
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if "NOT compiled" in line]
    assert len(warnings) == 1
    assert "OSError: no g++" in warnings[0]


def test_a_run_that_names_no_schedule_is_told_which_it_has_and_why(tmp_path, capsys):
    def told(folder, *overrides):
        train(RunConfig.load(None, [*TINY, "train.total_steps=4", *overrides]), tmp_path / folder, Console(stderr=True))
        return [line for line in capsys.readouterr().err.splitlines() if "no schedule is named" in line]

    (line,) = told("default")
    assert f"no schedule is named: {measured_losses().default} lost least in" in line
    assert "this run is unlike the nearest of them: " in line
    assert "4 steps (there " in line
    assert told("named", "schedule.preset=est") == []


def test_the_default_folder_names_the_model():
    assert default_folder("gpt2").parts[0] == "runs"
    assert default_folder("gpt2").name.startswith("gpt2-2")
    assert default_folder("some/where/models.py:make").name.startswith("models-2")


def test_a_text_too_short_for_a_step_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("a few words " * 10)
    with pytest.raises(SettingsError, match="makes 7 blocks of 16 tokens to train on, a step takes 8"):
        run(tmp_path / "run", f"data.source={tmp_path / 'short.txt'}", "train.accumulation=4")


def test_a_tracker_is_told_the_figures_of_the_subnetwork(tmp_path, monkeypatch):
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(dict(logs))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run(tmp_path / "run", "train.report_to=[tensorboard]")
    steps = [logs for logs in told if "loss" in logs]
    assert [logs["estfx/stage"] for logs in steps] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert steps[-1]["estfx/flops"] > steps[0]["estfx/flops"] > 0


@pytest.mark.sweep(day=0, days=2)
def test_tensorboard_shows_the_figures(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path / "run", "train.report_to=[tensorboard]")
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    events = reader.EventAccumulator(str(file.parent)).Reload()
    shown = {name: [event.value for event in events.Scalars(f"train/{name}")] for name in ("estfx/stage", "loss")}
    assert shown["estfx/stage"] == [1, 1, 2, 2, 3, 3, 3, 3]
    steps = [line["loss"] for line in lines_of(tmp_path / "run") if line["kind"] == "step"]
    assert shown["loss"] == pytest.approx(steps, rel=1e-3)
    assert len(events.Scalars("eval/loss")) == 9


def test_a_tracker_that_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        run(tmp_path / "run", "train.report_to=[tensorbord]")

    def missing():
        raise RuntimeError("it is not installed")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", missing)
    with pytest.raises(SettingsError, match=r"train\.report_to: wandb cannot be used: it is not installed"):
        run(tmp_path / "run", "train.report_to=[wandb]")
