"""`estfx report`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from estfx.cli.commands.options import AsJson

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, as `estfx train` wrote them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE_OR_FOLDER",
            help="Where to write. Default: report.html in the run's folder, or here if there are several.",
        ),
    ] = None,
    output: Annotated[
        Literal["html", "png", "svg", "json"] | None,
        typer.Option(
            "--format", help="html: one page; png, svg: a folder of figures; json: the numbers. Default: html."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs on one page: losses, savings, speed, and which parts were trained how often.

    Several runs are drawn over one another. One that was trained with schedule.preset=dense is what the
    others are compared with.

    estfx report runs/gpt2-20260101-120000

    estfx report runs/est runs/dense runs/constant --out comparison.html
    """
    from estfx.run_report import read_runs

    found = read_runs(runs)
    from estfx.run_report import contents_of, write_report  # which import torch

    contents = contents_of(found)
    for line in (*contents.warnings, *contents.notes):
        typer.echo(f"note: {line}", err=True)
    written = None
    if not as_json or out is not None or output is not None:
        written = write_report(contents, output or "html", out)
    if as_json:
        typer.echo(json.dumps(contents.to_json(), indent=2, allow_nan=False))
    else:
        typer.echo(str(written))
