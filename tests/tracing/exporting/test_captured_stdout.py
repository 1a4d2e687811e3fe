from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest
import torch
from hand_written import PreNorm, Stack, stream

import estfx
from estfx.errors import TraceError
from estfx.tracing.exporting.captured_stdout import held_output

LOGGER = logging.getLogger("torch.estfx_test")


class Branching(PreNorm):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD) if x_BTD.sum() > 0 else x_BTD


class Talking(PreNorm):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        print("a word of the layer")
        return super().forward(x_BTD)


def speak() -> None:
    print("printed")
    print("complained", file=sys.stderr)
    LOGGER.warning("warned")


def fail_after(talk: Callable[[], None]) -> None:
    with held_output():
        talk()
        raise ZeroDivisionError


def test_what_succeeds_is_heard(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with held_output():
        speak()
        assert caplog.messages == []
    assert capsys.readouterr() == ("printed\n", "complained\n")
    assert caplog.messages == ["warned"]


def test_what_fails_speaks_by_its_exception(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(speak)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == []
    speak()
    assert caplog.messages == ["warned"]


def test_what_was_asked_of_torchs_logs_is_heard_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER.name), pytest.raises(ZeroDivisionError):
        fail_after(lambda: LOGGER.info("asked for"))
    assert caplog.messages == ["asked for"]


def test_a_layer_without_a_graph_is_an_error_and_no_dump(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TraceError, match=r"torch\.export fails at test_captured_stdout\.py"):
        estfx.trace(Stack(Branching(), Branching()), (stream(),))
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_a_layer_may_print(capsys: pytest.CaptureFixture[str]) -> None:
    estfx.trace(Stack(Talking(), Talking()), (stream(),))
    assert "a word of the layer" in capsys.readouterr().out
