"""Writes a report: a page, a folder of figures, or JSON."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from estfx.run_report.contents import Contents
from estfx.settings import SettingsError

__all__ = ["Format", "default_place", "write_report"]

Format = Literal["html", "png", "svg", "json"]
FIGURES = "report-figures"


def write_report(contents: Contents, output: Format = "html", out: str | Path | None = None) -> Path:
    """Writes the report, and returns the file, or for figures the folder.

    Without `out` a report about one run goes into the run's folder, one about several into the current folder. For a
    page or JSON `out` is a file, or a folder that is there; for figures it is a folder.

    Raises SettingsError if it cannot be written, or if figures are asked for without matplotlib.
    """
    place = Path(out) if out is not None else default_place(contents, output)
    if output in ("html", "json") and place.is_dir():
        place = place / f"report.{output}"
    if output != "json":
        _require_matplotlib()
    try:
        if output in ("html", "json"):
            _write_text(contents, output, place)
        else:
            _write_figures(contents, output, place)
    except OSError as error:
        raise SettingsError(
            f"cannot write the report to {place}: {error.strerror or error}; choose another --out."
        ) from None
    return place


def default_place(contents: Contents, output: Format) -> Path:
    """Where a report goes that nobody said a place for."""
    folder = contents.runs[0].run.path if len(contents.runs) == 1 else Path()
    return folder / (f"report.{output}" if output in ("html", "json") else FIGURES)


def _write_text(contents: Contents, output: Format, file: Path) -> None:
    if output == "html":
        from estfx.run_report.page import page

        text = page(contents)
    else:
        text = json.dumps(contents.to_json(), indent=2, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _write_figures(contents: Contents, output: Format, folder: Path) -> None:
    from estfx.run_report.figures import figures_of
    from estfx.showing import style

    folder.mkdir(parents=True, exist_ok=True)
    with style():
        for name, figure in figures_of(contents, legend=True):
            metadata = {"Date": None} if output == "svg" else {}
            figure.savefig(folder / f"{name}.{output}", dpi=160, metadata=metadata)


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise SettingsError(
            "a report's figures are drawn by matplotlib, which is not installed: pip install 'estfx[plot]'. Without it "
            "there is --format json, the same figures as numbers."
        )
