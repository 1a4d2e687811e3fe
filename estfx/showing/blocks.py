"""Lines and tables, as text, as rich's, and as HTML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

__all__ = ["Block", "Cells", "Lines", "Shown", "compact", "counted", "print_shown", "sized"]

WIDTH = 120  # characters of a text that is made by str()


@dataclass(frozen=True)
class Cells:
    """A table: a heading for each column, and rows with a text for each."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})  # columns that hold words and stand on the left; the others hold numbers


Block: TypeAlias = str | Cells  # a line, or a table


class Shown(ABC):
    """What prints as lines and tables: by `print`, by rich, and in a notebook."""

    @abstractmethod
    def _blocks(self) -> Iterable[Block]:
        """The lines and tables, from the first to the last."""

    def __str__(self) -> str:
        from rich.console import Console

        file = StringIO()
        print_shown(Console(file=file, width=WIDTH, color_system=None, force_jupyter=False), self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        for block in self._blocks():
            yield _table(block) if isinstance(block, Cells) else Text(block)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # of IPython, which would show the repr

    def _repr_html_(self) -> str:
        return "\n".join(_html(block) for block in self._blocks())


class Lines(Shown):
    """Lines and tables that are at hand."""

    def __init__(self, *blocks: Block) -> None:
        self.blocks = blocks

    def _blocks(self) -> Iterable[Block]:
        return self.blocks


def print_shown(console: Console, shown: Shown) -> None:
    """Prints it on a console; lines that are longer than it is wide are left to the terminal to break."""
    for block in shown._blocks():
        if isinstance(block, Cells):
            console.print(_table(block))
        else:
            console.print(block, soft_wrap=True, markup=False, highlight=False)


def compact(numbers: Iterable[int], most: int = 6) -> str:
    """Numbers in ascending order as runs: `0-3 7 9-11`, and `… (40)` after so many of them, with how many they are."""
    each = list(numbers)
    runs = [[number for _, number in run] for _, run in groupby(enumerate(each), key=lambda pair: pair[1] - pair[0])]
    told = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:most]]
    return " ".join(told) + (f" … ({len(each)})" if len(runs) > most else "")


def counted(number: float) -> str:
    """How many, in millions from one million on, and in billions: `49,984`, `4.8 M`, `12.0 B`."""
    if number >= 1e9:
        return f"{number / 1e9:,.1f} B"
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"


def sized(number: float) -> str:
    """How many bytes, in GiB, and below a tenth of one in MiB."""
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:,.2f} MiB"


def _table(cells: Cells) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for number, heading in enumerate(cells.headings):
        if number in cells.words:
            table.add_column(Text(heading), no_wrap=number == 0, overflow="fold")
        else:
            table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return table


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>" if block.strip() else ""
    aligned = ["left" if number in block.words else "right" for number in range(len(block.headings))]

    def row(tag: str, texts: Sequence[str]) -> str:
        inner = "".join(
            f'<{tag} style="text-align: {side}">{escape(text).replace(chr(10), "<br>")}</{tag}>'
            for side, text in zip(aligned, texts, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(row("td", each) for each in block.rows)
    return f"<table>\n<thead>{row('th', block.headings)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
