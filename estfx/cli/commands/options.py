"""Arguments and options that several commands have."""

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["WEIGHTLESS_ABOVE", "AsJson", "ConfigValues", "LayerNames", "Model", "check_file"]

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
