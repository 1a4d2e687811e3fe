"""A report as a table: one block a program, the layers that share it, and their axes."""

from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from estfx.report import AxisReport, Report

__all__ = ["print_report"]


def print_report(console: Console, report: Report) -> None:
    """Prints what was found in a model, and below it, in words, what could not be narrowed."""
    table = Table(title=f"{report.model}, {len(report.layers)} layers", box=box.SIMPLE_HEAD)
    for column in ("layers", "program", "droppable", "axis", "size", "parameters [dimension]", "note"):
        table.add_column(
            column.replace("[", r"\["),
            overflow="fold",
            no_wrap=column != "note",
            justify="right" if column == "size" else "left",
        )
    notes: dict[str, None] = dict.fromkeys(report.notes)
    for program, group in groupby(report.layers, key=lambda layer: layer.program):
        layers = list(group)
        first = layers[0]
        names = first.name if len(layers) == 1 else f"{first.name}\n… {layers[-1].name}"
        head = [names, program, "yes" if all(layer.droppable for layer in layers) else "no"]
        for cells in [_cells(axis) for axis in first.axes] or [["nothing", "", "", ""]]:
            table.add_row(*head, *cells)
            head = ["", "", ""]
        table.add_section()
        notes |= dict.fromkeys(f"{program}: {note}" for layer in layers for note in layer.notes)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", soft_wrap=True, markup=False, highlight=False)


def _cells(axis: AxisReport) -> list[str]:
    parameters = "\n".join(rf"{name} \[{', '.join(map(str, dims))}]" for name, dims in axis.parameters.items())
    return [axis.role, str(axis.size), parameters, axis.note]
