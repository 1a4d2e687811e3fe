"""`estfx bench`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from estfx.cli.commands.options import AsJson, ConfigValues, Model, check_file

__all__ = ["bench"]


def bench(
    model: Model,
    config: ConfigValues = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="batch_size, seq_len, device, dtype, keep, rounds, …"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Writes the figures there, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure seconds per step by stage, against the compiled original and what else makes training cheaper."""
    from estfx.training import check_model, parse_options

    if out is not None:
        check_file("--out", out)
    options = parse_options(config or ())
    check_model(model, options)
    chosen = {"model": {"name": model, "config": options}, **parse_options(overrides or ())}
    from estfx.bench import BenchSettings

    settings = BenchSettings.from_mapping(chosen)
    from estfx.bench import bench as measure  # which imports torch

    progress = Console(stderr=True)
    result = measure(settings, lambda line: progress.print(line, highlight=False))
    if out is not None:
        out.write_text(result.model_dump_json(indent=2) + "\n")
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        from estfx.bench import print_result

        print_result(Console(), result)
