"""What ESTFX_DUMP writes: a file for each graph after each pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_written import Decoder, PreNorm, graph_of

import estfx
from estfx import switches
from estfx.errors import EstfxError
from estfx.graphs import pass_files
from estfx.graphs.pass_files import write_graph
from estfx.graphs.pipeline import run_passes
from estfx.passes import analysis

PASSES = [step.name() for step in analysis()]


def transform() -> None:
    ids = torch.zeros(2, 8, dtype=torch.long)
    model = estfx.transform(Decoder(PreNorm()), estfx.Schedule.est(30), example_inputs=(ids,), compile=False)
    model.set_step(0)
    model(ids)


@pytest.fixture
def dumping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "some" / "graphs"
    monkeypatch.setattr(switches, "DUMP", folder)
    return folder


def names(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.iterdir())]


def test_a_transform_writes_one_file_a_pass_and_graph_in_order(dumping: Path) -> None:
    transform()
    first = names(dumping)
    assert [name.split("-", 2)[2] for name in first[: len(PASSES)]] == [f"{step}.txt" for step in PASSES]
    assert {name.split("-", 2)[1] for name in first} == {"PreNorm"}
    assert [name.split("-")[0] for name in first] == [f"{i:05d}" for i in range(len(first))]
    texts = [(dumping / name).read_text(encoding="utf-8") for name in first]
    assert all(text.startswith("graph PreNorm:\n    %stream = input") and "f32[b, t, 40]" in text for text in texts)
    narrowed = [text for name, text in zip(first, texts, strict=True) if name.endswith("-narrow-axes.txt")]
    assert narrowed
    assert {"%index_neurons = input" in text for text in narrowed} == {True, False}  # the whole one, as an oracle
    assert all("# hand_written.py:" in text for text in narrowed)
    assert not any("%index_neurons" in text for text in texts[: len(PASSES)])
    del pass_files._next[dumping]  # as in another process, whose files come after
    transform()
    both = names(dumping)
    assert both[: len(first)] == first
    assert both[len(first)].startswith(f"{len(first):05d}-PreNorm-{PASSES[0]}")
    assert [(dumping / name).read_text(encoding="utf-8") for name in first] == texts


def test_the_graph_is_as_the_pass_has_left_it(dumping: Path) -> None:
    run_passes(graph_of(PreNorm()), analysis())
    assert names(dumping) == [f"{i:05d}-PreNorm-{step}.txt" for i, step in enumerate(PASSES)]
    texts = [path.read_text(encoding="utf-8") for path in sorted(dumping.iterdir())]
    assert "neurons" not in texts[-2]
    assert "neurons" in texts[-1]


def test_names_sort_beyond_a_thousand_files(tmp_path: Path) -> None:
    gm = graph_of(PreNorm())
    (tmp_path / "00999-Old-find-axes.txt").touch()
    (tmp_path / "notes.txt").touch()
    written = [write_graph(tmp_path, gm, "drop-noise").name for _ in range(2)]
    assert written == ["01000-PreNorm-drop-noise.txt", "01001-PreNorm-drop-noise.txt"]
    assert names(tmp_path)[1:3] == written


def test_what_another_process_has_written_meanwhile_stays(tmp_path: Path) -> None:
    gm = graph_of(PreNorm())
    assert write_graph(tmp_path, gm, "drop-noise").name.startswith("00000")
    other = tmp_path / "00001-PreNorm-drop-noise.txt"
    other.write_text("of another process")
    assert write_graph(tmp_path, gm, "drop-noise").name == "00002-PreNorm-drop-noise.txt"
    assert other.read_text() == "of another process"


def test_refusal_of_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "graphs", "Not a directory")):
        monkeypatch.setattr(switches, "DUMP", folder)
        with pytest.raises(EstfxError) as caught:
            run_passes(graph_of(PreNorm()), analysis())
        assert str(caught.value) == (
            f"ESTFX_DUMP is {str(folder)!r}, but the graphs cannot be written there: {reason}. Name a folder that can "
            "be made or written to, or unset it."
        )
        assert folder not in pass_files._next


@pytest.mark.sweep(day=3, days=4)
def test_the_command_line_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**os.environ, "ESTFX_DUMP": str(tmp_path / "file")}
    command = [sys.executable, "-m", "estfx", "inspect", "gpt2", "--config", "n_layer=1", "--config", "n_embd=12"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"error: ESTFX_DUMP is {str(tmp_path / 'file')!r}")
    assert "Traceback" not in done.stderr
