"""Arguments and options that several commands have."""

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "TEXT",
    "WEIGHTLESS_ABOVE",
    "AsJson",
    "BatchSize",
    "Column",
    "ConfigValues",
    "KeptPlot",
    "LayerNames",
    "Model",
    "NewFolder",
    "Reform",
    "RoundTo",
    "Samples",
    "SeqLen",
    "Tokenizer",
    "check_file",
    "check_new_folder",
    "check_plot",
]

WEIGHTLESS_ABOVE = 500_000_000  # parameters; larger models are looked at without weights

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A causal language model type of transformers, a folder with a config.json, or path.py:factory.",
    ),
]
ConfigValues = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="A value of the model's configuration. May be repeated."),
]
LayerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        metavar="PATTERN",
        help="Names the layers instead of finding them: 'blocks.*', a star for one part of a name. May be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output, and nothing else there.")]

# of calibration text, and of what is cut by it
TEXT = typer.Option(
    "--text",
    metavar="FILES",
    help="Calibration text: a file, a pattern such as 'texts/**/*.txt', or a dataset. May be repeated.",
)
Column = Annotated[str, typer.Option("--column", help="Where JSON lines, Parquet and datasets hold text.")]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="DIR", help="'bytes', or a folder. Default: MODEL, if it holds one."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Blocks of calibration text.")]
SeqLen = Annotated[
    int | None, typer.Option("--seq-len", min=2, help="Tokens of a block. Default: 256, or all positions if fewer.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Blocks that are run at once.")]
RoundTo = Annotated[int, typer.Option("--round-to", min=1, help="Neurons are kept in multiples of this.")]
Reform = Annotated[
    bool, typer.Option("--reform", help="Refit closing weights to --text, so that they make up for what is gone.")
]
KeptPlot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draws the kept units by layer: a .png or .svg.")
]
NewFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="An empty or a new folder for the cut.")]


def check_new_folder(path: Path, hint: str = "") -> None:
    """Raises SettingsError for a folder that holds something, and for a file."""
    from estfx.settings import SettingsError

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingsError(f"--out {path} is there already; name a new or an empty folder.{hint}")


def check_plot(path: Path | None) -> None:
    """Raises SettingsError if a plot cannot be written there."""
    from estfx.settings import SettingsError

    if path is not None:
        if path.suffix not in (".png", ".svg"):
            raise SettingsError(f"a plot is written as .png or .svg, not as {path.suffix or path.name!r}.")
        check_file("--plot", path)


def check_file(option: str, path: Path) -> None:
    """Raises SettingsError if a file cannot be written there; writes nothing."""
    from estfx.settings import SettingsError

    folder = path.absolute().parent
    if path.is_dir():
        raise SettingsError(f"{option} {path} is a folder; name a file in it.")
    if not folder.is_dir():
        raise SettingsError(f"{option} {path}: there is no folder {path.parent}; make it, or name another file.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise SettingsError(f"{option} {path} may not be written to; name another file.")
