"""`estfx search` searches, cuts, refits and saves; stopped, it goes on; and it refuses before it loads anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_decoders import build
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from estfx.cli.cut_settings import limits_of
from estfx.cli.main import app
from estfx.searching.evolution import Evolution
from estfx.settings import SettingsError

SMALL = ("--population", "6", "--kept", "2", "--generations", "2", "--levels", "4", "--samples", "4")


def told(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["search", *words])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model for bytes, and one with text."""
    folder = tmp_path_factory.mktemp("trained")
    build("llama_grouped", vocab_size=260, max_position_embeddings=64).save_pretrained(folder / "model")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 60)
    return folder


def words_for(trained: Path, out: Path) -> tuple[str, ...]:
    text = str(trained / "text.txt")
    return (str(trained / "model"), "--target", "parameters=0.7", "--text", text, "--out", str(out), *SMALL)


def test_the_best_part_is_searched_cut_refitted_and_loaded(trained: Path, tmp_path: Path) -> None:
    plot = tmp_path / "kept.svg"
    words = (*words_for(trained, tmp_path / "small"), "--reform", "--plot", str(plot), "--json")
    found: dict[str, Any] = json.loads(told(*words))
    assert found["search"]["shares"]["parameters"] <= 0.7
    assert found["search"]["loss"] == pytest.approx(found["cut"]["losses"]["cut"], rel=1e-5)
    assert found["cut"]["losses"].keys() == {"whole", "cut", "refitted"}
    assert len(found["search"]["history"]) == 3
    assert "what stays (dark)" in plot.read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == found["cut"]["parameters"]["now"]
    assert model(torch.arange(12)[None]).logits.isfinite().all()


def test_a_search_that_was_interrupted_goes_on(trained: Path, tmp_path: Path) -> None:
    whole = json.loads(told(*words_for(trained, tmp_path / "whole"), "--json"))["search"]
    words = words_for(trained, tmp_path / "small")
    judge, count = Evolution._judge, iter(range(100))

    def interrupted(self: Any, candidate: Any) -> None:
        if next(count) == 9:
            raise KeyboardInterrupt
        judge(self, candidate)

    with mock.patch.object(Evolution, "_judge", interrupted):
        assert "interrupted. Go on with --resume" in told(*words, status=130)
    assert "Go on with the search in it by --resume" in told(*words, status=2)
    again = json.loads(told(*words, "--resume", "--json"))["search"]
    assert [again[name] for name in ("loss", "units", "history")] == [
        whole[name] for name in ("loss", "units", "history")
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("half", "names no cost. Write parameters=0.7, flops=0.7 or seconds=0.7"),
        ("parameters=1", "a share of the whole lies above 0 and below 1, not '1'"),
        ("flops=x", "not 'x'"),
    ],
)
def test_targets_that_are_none_are_refused(target: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        limits_of(target)
    assert limits_of("parameters=0.5, flops=.25") == {"parameters": 0.5, "flops": 0.25}


def test_a_folder_without_a_search_cannot_be_gone_on_with(trained: Path, tmp_path: Path) -> None:
    assert "holds no search that could be gone on with" in told(
        *words_for(trained, tmp_path / "none"), "--resume", status=2
    )
    assert "has random weights" in told("gpt2", *words_for(trained, tmp_path / "none")[1:], status=2)
    assert not (tmp_path / "none").exists()
