"""A report as a tree: every layer by itself."""

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from estfx.report import Report

__all__ = ["print_tree"]


def print_tree(console: Console, report: Report) -> None:
    """Prints every layer by itself: its branches, its axes with the parameters that have them, and the reasons."""
    tree = Tree(Text(f"{report.model}, {len(report.layers)} layers"))
    for layer in report.layers:
        place = tree.add(Text(f"{layer.name}: {layer.told}"))
        for branch in layer.branches:
            place.add(Text(branch))
        for axis in layer.axes:
            inner = place.add(Text(f"{axis.role} {axis.size}" + (f": {axis.note}" if axis.note else "")))
            for each in axis.places:
                inner.add(Text(each))
        for note in layer.notes:
            place.add(Text(note))
    for note in report.notes:
        tree.add(Text(note))
    console.print(tree, soft_wrap=True)
