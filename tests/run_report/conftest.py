"""Two short runs, made once: one through the three stages, one that trains the whole model all along."""

import json
import shutil

import pytest
from rich.console import Console

from estfx.training.train_config import RunConfig
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
    "train.eval_every=4",
    "train.compile=false",
)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, preset in (("evolving", "est"), ("whole", "dense")):
        config = RunConfig.load(None, [*TINY, f"schedule.preset={preset}"])
        train(config, folder / name, Console(quiet=True))
        shutil.rmtree(folder / name / "model")
    return folder


@pytest.fixture
def evolving(runs, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(runs / "evolving", tmp_path / "evolving")


@pytest.fixture
def whole(runs, tmp_path):
    return shutil.copytree(runs / "whole", tmp_path / "whole")


@pytest.fixture
def lines_of():
    return lambda folder: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
