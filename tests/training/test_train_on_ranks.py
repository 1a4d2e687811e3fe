"""`estfx train` in two processes: the model on each, or its shards, and back to one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import as_torchrun, on_ranks
from rich.console import Console
from tiny_runs import TINY, lines_of, run, weights_of
from tiny_runs import assert_same as assert_same_bits
from tiny_trainers import evolving, trainer_of

from estfx.errors import EstfxError
from estfx.settings import SettingsError
from estfx.training.checkpointing_trainer import StopsOnSignal
from estfx.training.checkpoints import CheckpointError
from estfx.training.train_config import RunConfig
from estfx.training.training_run import train

FSDP = "train.distribution=fsdp"
HALF = "train.batch_size=1"  # on each of two ranks


def trained(folder: Path, overrides: tuple[str, ...], stops_at: int, options: dict[str, Any]) -> str | None:
    """Trains as a rank under torchrun does; gives what is said when it fails."""
    with pytest.MonkeyPatch.context() as patch, as_torchrun():
        patch.setattr(StopsOnSignal, "_asked", lambda self, now, device: now == stops_at)
        config = RunConfig.load(None, [*TINY, *overrides]) if overrides else None
        try:
            train(config, folder, Console(quiet=True), **options)
        except EstfxError as error:
            return str(error)
    return None


def on_two(folder: Path, *overrides: str, stops_at: int = -1, **options: Any) -> list[str | None]:
    return on_ranks(trained, folder, overrides, stops_at, options)


def assert_same(one: Path, other: Path) -> None:
    """But for the order in which float32 sums are taken."""
    lines, others = lines_of(one), lines_of(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, another in zip(lines, others, strict=True):
        name = "loss" if line["kind"] == "step" else "held_out_loss"
        assert line[name] == pytest.approx(another[name], rel=1e-5)
    weights, other_weights = weights_of(one), weights_of(other)
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-4, atol=1e-4)


NO_DROPOUT = "model.config.resid_pdrop=0.0"  # whose random numbers are another process's


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, NO_DROPOUT)
    return folder


@pytest.mark.sweep("way", days=4)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_losses_and_weights_are_those_of_one_process(way: str, alone: Path, tmp_path: Path) -> None:
    assert on_two(tmp_path / "run", NO_DROPOUT, HALF, f"train.distribution={way}") == [None, None]
    assert_same(alone, tmp_path / "run")


@pytest.mark.sweep("way", days=3)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_stopped_run_goes_on_to_the_bit_and_with_one_process_when_told(way: str, alone: Path, tmp_path: Path) -> None:
    settings = [NO_DROPOUT, HALF, f"train.distribution={way}"]
    assert on_two(tmp_path / "whole", *settings) == [None, None]
    said = on_two(tmp_path / "run", *settings, stops_at=5)
    assert all(each is not None and "stopped after 5 steps, with a checkpoint" in each for each in said)
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    assert on_two(tmp_path / "run", resume=True) == [None, None]
    assert_same_bits(tmp_path / "run", tmp_path / "whole")

    one = [NO_DROPOUT, "train.batch_size=2", "train.distribution=ddp"]
    with pytest.raises(SettingsError, match=r"was begun with something else.*--accept-changes"):
        run(tmp_path / "one", *one, resume=True)
    if way == "ddp":
        with pytest.raises(CheckpointError, match=r"was written by 2 processes, now there is 1.*--accept-changes"):
            run(tmp_path / "one", resume=True)
    run(tmp_path / "one", *one, resume=True, accept_changes=True)
    assert_same(alone, tmp_path / "one")


@pytest.mark.skipif(torch.__version__ < "2.12", reason="gloo of torch 2.11 ends such a run, see docs/limits.md")
@pytest.mark.sweep(day=0, days=2)
def test_a_run_of_one_process_goes_on_in_shards(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "run")
    for late in ("summary.json", "model", "checkpoints/checkpoint-12"):
        path = tmp_path / "run" / late
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    changes = (NO_DROPOUT, HALF, FSDP)
    assert on_two(tmp_path / "run", *changes, resume=True, accept_changes=True) == [None, None]
    assert_same(alone, tmp_path / "run")


def test_shards_want_several_processes(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is one\. Start several: torchrun"):
        run(tmp_path / "run", FSDP)


def trained_apart(folder: Path) -> str | None:
    """A Trainer that is asked to evaluate before it trains, and so leaves the model out of DDP."""
    with as_torchrun():
        trainer = trainer_of(evolving(), folder, ddp_find_unused_parameters=True, ddp_backend="gloo")
        trainer.evaluate()
        try:
            trainer.train()
        except EstfxError as error:
            return str(error)
    return None


@pytest.mark.sweep(day=1, days=2)
def test_ranks_whose_gradients_nobody_averages_are_told_so(tmp_path: Path) -> None:
    for said in on_ranks(trained_apart, tmp_path):
        assert said is not None
        assert "the gradients differ from rank to rank" in said
        assert "eval_on_start" in said
