"""On a terminal a spinner says what takes long; elsewhere nothing is written."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console
from tiny_decoders import build

import estfx
from estfx import waiting
from estfx.schedules.schedule import Schedule


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(waiting, "SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_terminal", lambda: console)
    yield file
    assert waiting._spinner is None


def test_what_takes_long_is_told(shown: io.StringIO) -> None:
    with waiting.working("one thing"):
        time.sleep(0.3)
        waiting.tell("another thing")
        with waiting.working("a thing within"):
            time.sleep(0.3)
    for what in ("one thing", "a thing within"):
        assert what in shown.getvalue()


def test_what_is_quick_is_not(shown: io.StringIO) -> None:
    with waiting.working("one thing"):
        pass
    time.sleep(0.2)
    assert shown.getvalue() == ""


def test_a_fault_ends_it(shown: io.StringIO) -> None:
    @waiting.working("one thing")
    def faulty() -> float:
        time.sleep(0.2)
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        faulty()
    length = len(shown.getvalue())
    time.sleep(0.2)
    assert len(shown.getvalue()) == length > 0


def test_transform_tells_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for module in ("estfx.transformation", "estfx.tracing.decoder"):
        monkeypatch.setattr(f"{module}.tell", told.append)
    estfx.transform(build("llama_grouped"), Schedule.est(15), compile=False)
    assert told[0].startswith("tracing layer 1 of ")
    assert "verifying LlamaDecoderLayer" in told
    assert told[-1] == "comparing the whole model with the original"


def test_nothing_is_written_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with waiting.working("one thing"):
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.sweep(day=1, days=2)
def test_a_terminal_shows_it() -> None:
    ours, theirs = pty.openpty()
    code = (
        "import time; from estfx import waiting; waiting.SECONDS = 0.1\n"
        "with waiting.working('building a model'): time.sleep(0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=os.environ | {"TERM": "xterm"}, timeout=60)
    os.close(theirs)
    assert done.returncode == 0
    assert b"building a model" in os.read(ours, 10_000)
    os.close(ours)
