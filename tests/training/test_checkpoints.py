"""Checkpoints in a folder: which is the last, which stay, and what is on disk before one has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from estfx.training.checkpoints import UNFINISHED, finish, latest, steps_of


def unfinished(folder: Path, step: int) -> Path:
    written = folder / UNFINISHED / f"checkpoint-{step}"
    (written / "inner").mkdir(parents=True)
    for name in ("model.safetensors", "trainer_state.json", "inner/part.bin"):
        (written / name).write_text(name)
    return written


def test_all_of_a_checkpoint_is_on_disk_before_its_name_is_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of what the operating system is asked for: nothing else shows but a loss of power."""
    written = unfinished(tmp_path, 3)
    needed = {path.stat().st_ino for path in (written, *written.rglob("*"))}
    assert len(needed) == 5
    events: list[object] = []
    own = Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.fstat(file).st_ino))
    monkeypatch.setattr(Path, "rename", lambda path, to: events.append(path.name) or own(path, to))
    finish(tmp_path, 3, keep=2)
    named = events.index("checkpoint-3")
    assert needed <= set(events[:named])
    assert tmp_path.stat().st_ino in events[named:]


def test_the_last_ones_stay_by_their_numbers(tmp_path: Path) -> None:
    for step in (2, 8, 9, 10):
        unfinished(tmp_path, step)
        finish(tmp_path, step, keep=2)
    assert list(steps_of(tmp_path)) == [9, 10]
    assert latest(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / UNFINISHED).exists()
