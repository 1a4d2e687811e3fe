"""`estfx cut` scores, cuts, refits, saves; and refuses before it loads anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import build
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from estfx.cli.cut_settings import shares_of
from estfx.cli.main import app
from estfx.settings import SettingsError


def told(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["cut", *words])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model for bytes, and one with text."""
    folder = tmp_path_factory.mktemp("trained")
    build("llama_grouped", vocab_size=260, max_position_embeddings=64).save_pretrained(folder / "model")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 60)
    return folder


def test_a_trained_model_is_cut_by_text_and_refitted(trained: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "small", tmp_path / "kept.svg"
    words = (str(trained / "model"), "--keep", "heads=0.67,neurons=0.5,layers=0.67", "--by", "activation")
    words += ("--text", str(trained / "text.txt"), "--reform", "--out", str(out), "--plot", str(plot), "--json")
    found: dict[str, Any] = json.loads(told(*words))
    assert found["form"] == "configuration"
    assert len(found["layers"]) == 2
    assert found["losses"].keys() == {"whole", "cut", "refitted"}
    assert found["error"] < 1e-5
    assert 0 < found["parameters"]["now"] < found["parameters"]["before"]
    assert "what stays (dark)" in plot.read_text()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == found["parameters"]["now"]
    assert model(torch.arange(12)[None]).logits.isfinite().all()


def test_by_magnitude_no_text_is_needed_and_a_table_is_printed(trained: Path, tmp_path: Path) -> None:
    text = told(str(trained / "model"), "--keep", "neurons=0.5", "--round-to", "8", "--out", str(tmp_path / "small"))
    assert "32 of 56: " in text
    assert "all 3" in text
    assert "an ordinary checkpoint; of its configuration: intermediate_size = 32" in text
    assert "loss on the calibration text" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "head=0.5"), "'head=0.5' names no part"),
        (("--keep", "heads"), "'heads' names no part"),
        (("--keep", "heads=0"), "a share lies above 0 and is 1 at most, not '0'"),
        (("--keep", "heads=1.5"), "not '1.5'"),
        (("--keep", "heads=half"), "not 'half'"),
        (("--keep", "heads=1"), "keeps the whole model"),
        (("--keep", "layers=0.5"), "--keep layers=0.5 needs calibration text"),
        (("--keep", "heads=0.5", "--by", "fisher", "--reform"), "--by fisher and --reform needs calibration text"),
        (("--keep", "heads=0.5", "--text", "nowhere.txt"), "there is no file nowhere.txt"),
        (("--keep", "heads=0.5", "--text", "standard-library"), "gpt2 has random weights, of which text says nothing"),
        (("--keep", "heads=0.5", "--plot", "x.pdf"), "a plot is written as .png or .svg, not as '.pdf'"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    text = told("gpt2", *words, "--out", str(tmp_path / "small"), status=2)
    assert said in " ".join(text.split())
    assert not (tmp_path / "small").exists()


def test_a_folder_that_is_there_is_not_written_over(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    text = told(str(trained / "model"), "--keep", "heads=0.5", "--out", str(tmp_path), status=2)
    assert "is there already; name a new or an empty folder" in " ".join(text.split())


def test_a_text_of_other_tokens_is_refused(trained: Path, tmp_path: Path) -> None:
    build("llama", vocab_size=100).save_pretrained(tmp_path / "model")
    words = (str(tmp_path / "model"), "--keep", "heads=0.5", "--by", "fisher", "--text", str(trained / "text.txt"))
    text = told(*words, "--out", str(tmp_path / "small"), status=2)
    assert "the text has 257 kinds of tokens, and the model knows 100" in " ".join(text.split())


def test_shares_are_read() -> None:
    assert shares_of("heads=.5, layers=0.75") == {"heads": 0.5, "neurons": 1.0, "layers": 0.75}
    with pytest.raises(SettingsError, match="names no part"):
        shares_of("")
