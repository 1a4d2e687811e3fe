"""Figures in one style, which a notebook shows and files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import estfx
from estfx.errors import ScheduleError
from estfx.settings import SettingsError

pytest.importorskip("matplotlib")


def test_a_schedule_is_drawn(tmp_path: Path) -> None:
    figure = estfx.Schedule.est(1000).plot(tmp_path / "est.svg")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"stage 1", "stage 2", "stage 3"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["layers", "heads", "neurons"]
    steps = {patch.get_label(): patch.get_data() for patch in axes.patches}
    assert list(steps["layers"].values) == [0.5, 1, 1]
    assert list(steps["heads"].edges) == [0, 133, 467, 1000]
    assert "<svg" in (tmp_path / "est.svg").read_text()
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_a_schedule_without_an_end_is_not_drawn() -> None:
    with pytest.raises(ScheduleError, match="its total_steps must be known"):
        estfx.Schedule.constant(0.5).plot()


def test_a_figure_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be written: No such file"):
        estfx.Schedule.est(10).plot(tmp_path / "none" / "x.png")
    with pytest.raises(SettingsError, match=r"cannot be written: .*supported"):
        estfx.Schedule.est(10).plot(tmp_path / "x.docx")
