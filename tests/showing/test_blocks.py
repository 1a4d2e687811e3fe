"""Lines and tables as text, as rich's, and as HTML."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from estfx.showing import Block, Cells, Shown, compact, counted, sized


class Two(Shown):
    def _blocks(self) -> Iterable[Block]:
        yield "a line that [is] <long> " + "x" * 150
        yield Cells(("name", "n", "words"), [("a", "1", "one\ntwo"), ("b<c", "22", "[bold]")], words=frozenset({0, 2}))


def test_text_keeps_long_lines_and_aligns_columns() -> None:
    lines = str(Two()).splitlines()
    assert lines[0] == "a line that [is] <long> " + "x" * 150
    assert lines[2].split() == ["name", "n", "words"]
    assert lines[4:] == [" a       1   one", "             two", " b<c    22   [bold]"]


def test_rich_prints_it_within_its_width() -> None:
    file = io.StringIO()
    Console(file=file, width=60).print(Two())
    assert max(map(len, file.getvalue().splitlines())) <= 60
    assert "a line that [is] <long>" in file.getvalue()
    assert "[bold]" in file.getvalue()


def test_html_escapes_and_aligns() -> None:
    html = Two()._repr_html_()
    assert "<p>a line that [is] &lt;long&gt; xxx" in html
    assert '<td style="text-align: left">one<br>two</td>' in html
    assert '<td style="text-align: right">22</td>' in html
    assert "b&lt;c" in html
    assert html.count("<tr>") == 3


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1, 2, 5, 7, 8], "0-2 5 7-8"),
        (range(0, 40, 2), "0 2 4 6 8 10 … (20)"),
    ],
)
def test_numbers_are_told_as_runs(numbers: Iterable[int], told: str) -> None:
    assert compact(numbers) == told


def test_how_many_and_how_large() -> None:
    assert [counted(n) for n in (49_984, 4_840_000, 12e9)] == ["49,984", "4.8 M", "12.0 B"]
    assert [sized(n) for n in (2**20, 2**30)] == ["1.00 MiB", "1.00 GiB"]
