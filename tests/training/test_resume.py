"""A run that dies goes on as if it had not: the same draws, losses and weights, to the bit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import STEPS, TINY, assert_same, lines_of, run

from estfx.settings import SettingsError
from estfx.training import checkpointing_trainer
from estfx.training.checkpointing_trainer import StopsOnSignal
from estfx.training.checkpoints import CheckpointError, load_state, save_state, steps_of
from estfx.training.train_config import RunConfig
from estfx.training.train_recorder import TrainingFailedError
from estfx.training.training_run import StoppedError, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a run be told to terminate at a step."""

    def at(step: int) -> None:
        monkeypatch.setattr(StopsOnSignal, "_asked", lambda self, now, device: now == step)

    return at


@pytest.fixture
def stopped(tmp_path: Path, stopping: Any) -> Path:
    """A run that was stopped after 5 steps, of which 4 and 5 have a checkpoint."""
    stopping(5)
    with pytest.raises(StoppedError, match=r"stopped after 5 steps, with a checkpoint.*--resume --out"):
        run(tmp_path / "run")
    stopping(-1)
    return tmp_path / "run"


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    step: int, whole: Path, tmp_path: Path, stopping: Any
) -> None:
    stopping(step)
    with pytest.raises(StoppedError):
        run(tmp_path / "run")
    stopping(-1)
    torch.manual_seed(99)
    summary = run(tmp_path / "run", resume=True)
    assert summary["steps"] == STEPS
    assert_same(tmp_path / "run", whole)


def test_what_came_after_the_last_checkpoint_is_done_again(whole: Path, stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-5")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # killed while it wrote
    (stopped / "checkpoints" / "unfinished" / "checkpoint-6").mkdir(parents=True)
    (stopped / "checkpoints" / "unfinished" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    run(stopped, resume=True)
    assert_same(stopped, whole)
    assert list(steps_of(stopped / "checkpoints")) == [10, 12]  # the last two


def test_held_out_losses_on_the_way_are_taken_once(tmp_path: Path, stopping: Any) -> None:
    stopping(4)
    with pytest.raises(StoppedError):
        run(tmp_path / "run", "train.eval_every=4")
    stopping(-1)
    run(tmp_path / "run", resume=True)
    assert [line["step"] for line in lines_of(tmp_path / "run") if line["kind"] == "eval"] == [0, 4, 8, 12]


def test_a_run_without_a_checkpoint_begins_anew(whole: Path, stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    run(stopped, resume=True)
    assert_same(stopped, whole)


def test_a_kill_before_a_checkpoint_has_its_name_leaves_the_earlier_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def finish(folder: Path, step: int, keep: int) -> None:
        if step == 8:
            raise Killed
        original(folder, step, keep)

    original = checkpointing_trainer.finish
    monkeypatch.setattr(checkpointing_trainer, "finish", finish)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert list(steps_of(tmp_path / "run" / "checkpoints")) == [4, 6]
    run(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole)


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def flip(path: Path) -> None:
    """Changes one byte of the random numbers."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(path / "model.safetensors", 1000), r"model\.safetensors is damaged"),
        (lambda path: os.truncate(path / "optimizer.safetensors", 100), r"optimizer\.safetensors is damaged"),
        (lambda path: (path / "optimizer.json").unlink(), r"lacks optimizer\.json"),
        (lambda path: (path / "optimizer.safetensors").unlink(), r"lacks optimizer\.safetensors"),
        (lambda path: (path / "trainer_state.json").write_text("{"), r"trainer_state\.json is damaged"),
        (lambda path: (path / "rng_state.pth").unlink(), r"lacks rng_state\.pth"),
        (lambda path: os.truncate(path / "rng_state.pth", 300), r"rng_state\.pth is damaged"),
        (lambda path: flip(path / "rng_state.pth"), r"rng_state\.pth is damaged"),
        (
            lambda path: (path / "scheduler.json").write_text("[]"),
            r"scheduler\.json is damaged \(an object was expected",
        ),
        (lambda path: change(path / "trainer_state.json", '"global_step": 5', '"global_step": 3'), "its step is 3"),
        (lambda path: change(path / "optimizer.json", "exp_avg", "exp_avj"), r"optimizer\.safetensors lacks \."),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_named(damage: Any, said: str, stopped: Path) -> None:
    damage(stopped / "checkpoints" / "checkpoint-5")
    with pytest.raises(CheckpointError, match=rf"{said}.*Remove that folder to go on from checkpoint-4"):
        run(stopped, resume=True)
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-4")
    with pytest.raises(CheckpointError, match="no other checkpoint to go on from: begin a new run"):
        run(stopped, resume=True)


def test_another_configuration_is_refused(whole: Path, stopped: Path) -> None:
    said = "begun with something else: train.seed was 0, is 7. Leave the changes out, or pass --accept-changes"
    with pytest.raises(SettingsError, match=said):
        run(stopped, "train.seed=7", resume=True)
    run(stopped, "train.keep_checkpoints=1", "train.seed=7", resume=True, accept_changes=True)
    assert list(steps_of(stopped / "checkpoints")) == [STEPS]
    assert lines_of(stopped)[:5] == lines_of(whole)[:5]
    assert lines_of(stopped) != lines_of(whole)
    with pytest.raises(SettingsError, match="is finished; begin a new one"):
        run(stopped, resume=True)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no run to be resumed: there is no config\.yaml"):
        run(tmp_path, resume=True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may become larger than a few thousand bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(whole: Path, stopped: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("small_files")
    said = "the checkpoint of step 6 could not be written.*checkpoint-5 is complete. Make room"
    with pytest.raises(TrainingFailedError, match=said):
        run(stopped, resume=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert list(steps_of(stopped / "checkpoints")) == [4, 5]
    run(stopped, resume=True)
    assert_same(stopped, whole)


def test_states_are_written_without_loss(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": tied.view(2, 3).t(), "n": 5}, 7: {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.95), "amsgrad": False, "foreach": None, "params": [0, 7]}],
    }
    save_state(state, tmp_path, "optimizer")
    found = load_state(tmp_path, "optimizer")
    assert torch.equal(found["state"][0].pop("exp_avg"), state["state"][0].pop("exp_avg"))
    assert torch.equal(found["state"][0].pop("step"), state["state"][0].pop("step"))
    assert found == state
    with pytest.raises(CheckpointError, match=r"holds a set at `a\.b`, which a checkpoint cannot hold"):
        save_state({"a": {"b": {1}}}, tmp_path, "optimizer")


def started(folder: Path, *overrides: str, resume: bool = False) -> subprocess.Popen[str]:
    options = ["--resume"] if resume else [word for line in (*TINY, *overrides) for word in ("--set", line)]
    command = [sys.executable, "-m", "estfx", "train", *options, "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def wait_for_steps(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"step", ') < number:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.sweep("number", days=4)
@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGTERM, 3, "told to terminate"), (signal.SIGINT, 130, "interrupted")],
    ids=["terminated", "interrupted"],
)
def test_signals(number: int, status: int, told: str, tmp_path: Path) -> None:
    """Killed, stopped by a signal, and run to the end."""
    long = "train.total_steps=90"
    folder = tmp_path / "run"
    killed = started(folder, long)
    wait_for_steps(folder, 10, killed)
    killed.kill()
    killed.communicate()
    stopped = started(folder, resume=True)
    wait_for_steps(folder, 30, stopped)
    stopped.send_signal(number)
    _, said = stopped.communicate()
    assert stopped.returncode == status, said
    assert f"{told}: stopped after " in said
    assert f"estfx train --resume --out {folder}" in " ".join(said.split())
    run(folder, resume=True)
    train(RunConfig.load(None, [*TINY, long]), tmp_path / "whole", Console(quiet=True))
    assert_same(folder, tmp_path / "whole")
