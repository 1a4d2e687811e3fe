"""A report for reading: one block for the layers that are alike, with their names, their axes, and the reasons."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from estfx.report import AxisReport, LayerReport, Report
from estfx.tracing import listed

__all__ = ["print_report", "print_tree"]


def print_report(console: Console, report: Report) -> None:
    """Prints what was found in a model and, in words, what could not be narrowed."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    say(f"{report.model}, {len(report.layers)} layers")
    alike: dict[object, list[LayerReport]] = {}  # but for their names, in order of first appearance
    for layer in report.layers:
        alike.setdefault(layer.model_copy(update={"name": ""}).model_dump_json(), []).append(layer)
    for layers in alike.values():
        names, layer = listed(layer.name for layer in layers), layers[0]
        count = f" ({len(layers)})" if len(layers) > 1 else ""
        skip = "may be skipped" if layer.droppable else "cannot be skipped"
        say(f"\n{names}{count}: {layer.program or 'no graph'}, {skip}")
        for branch in layer.branches:
            say(f"  {branch}")
        if layer.axes:
            console.print(_axes(layer))
        for note in dict.fromkeys(layer.notes):
            say(f"- {note}")
    for note in report.notes:
        say(f"- {note}")


def print_tree(console: Console, report: Report) -> None:
    """Prints every layer by itself: its branches, its axes with the parameters that have them, and the reasons."""
    tree = Tree(Text(f"{report.model}, {len(report.layers)} layers"))
    for layer in report.layers:
        skip = "may be skipped" if layer.droppable else "cannot be skipped"
        place = tree.add(Text(f"{layer.name}: {layer.program or 'no graph'}, {skip}"))
        for branch in layer.branches:
            place.add(Text(branch))
        for axis in layer.axes:
            inner = place.add(Text(f"{axis.role} {axis.size}" + (f": {axis.note}" if axis.note else "")))
            for name, dims in axis.parameters.items():
                inner.add(Text(f"{name} [{', '.join(map(str, dims))}]"))
        for note in layer.notes:
            place.add(Text(note))
    for note in report.notes:
        tree.add(Text(note))
    console.print(tree, soft_wrap=True)


def _axes(layer: LayerReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("axis", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column(Text("parameters [dimension]"), overflow="fold")
    if any(axis.note for axis in layer.axes):
        table.add_column("note", overflow="fold")
    for axis in layer.axes:
        table.add_row(axis.role, str(axis.size), Text(_parameters(axis)), Text(axis.note))
    return table


def _parameters(axis: AxisReport) -> str:
    return "\n".join(f"{name} [{', '.join(map(str, dims))}]" for name, dims in axis.parameters.items())
