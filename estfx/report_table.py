"""A report as a table: one block a program, the layers that share it, and their axes."""

from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from estfx import Report

__all__ = ["print_report"]


def print_report(console: Console, report: "Report") -> None:
    """Prints what was found in a model, and below it, in words, what could not be narrowed."""
    table = Table(title=f"{len(report.layers)} layers", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("layers", "program", "droppable", "axis", "size", "parameters", "note"):
        table.add_column(
            column,
            overflow="fold",
            no_wrap=column not in ("parameters", "note"),
            justify="right" if column == "size" else "left",
        )
    for program, group in groupby(report.layers, key=lambda layer: layer.program):
        layers = list(group)
        first = layers[0]
        names = first.name if len(layers) == 1 else f"{first.name}\n… {layers[-1].name}"
        droppable = "yes" if all(layer.droppable for layer in layers) else "no"
        head = [names, program, droppable]
        for axis in first.axes or [None]:
            cells = ["nothing", "", "", ""]
            if axis is not None:
                cells = [axis.role, str(axis.size), "\n".join(axis.parameters), axis.note or ""]
            table.add_row(*head, *cells)
            head = ["", "", ""]
        table.add_section()
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}", soft_wrap=True, markup=False, highlight=False)
