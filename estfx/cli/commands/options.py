"""Arguments and options that several commands have."""

from typing import Annotated

import typer

__all__ = ["WEIGHTLESS_ABOVE", "AsJson", "ConfigValues", "LayerNames", "Model"]

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
