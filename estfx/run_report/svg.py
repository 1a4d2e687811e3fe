"""Figures as SVG that can stand in a page: its own colours, its own names, nothing from elsewhere."""

from __future__ import annotations

import io
import re

from matplotlib.figure import Figure

from estfx.run_report.told_values import values_of
from estfx.showing import LIGHT

__all__ = ["inline"]

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` whose colours are the page's variables; `title` is read out in its place.

    The values of its lines go with it, in `data-chart`, for the page's script.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="1.1"', "", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s*", "\n", text)
    text = re.sub(r"'DejaVu Sans'.*?sans-serif", "system-ui, sans-serif", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{_escaped(title)}"', 1)
    text = re.sub(r'( id="|"#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{2,}", _shorter, path[0]), text)
    for variable, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{variable})")
    if values := values_of(figure):
        text = text.replace("<svg", f'<svg data-chart="{_escaped(values)}"', 1)
    return text.replace("xlink:href", "href")


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
