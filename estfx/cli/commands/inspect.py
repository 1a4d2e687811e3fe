"""`estfx inspect`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from estfx.cli.commands.options import WEIGHTLESS_ABOVE, AsJson, ConfigValues, LayerNames, Model

__all__ = ["inspect"]


def inspect(
    model: Model,
    config: ConfigValues = None,
    layers: LayerNames = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show every layer by itself, as a tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's layers, and what can be narrowed in them: branches, axes, reasons.

    estfx inspect llama

    estfx inspect my_model.py:factory --layers 'blocks.*' --tree
    """
    from estfx.training import check_model, parse_options
    from estfx.waiting import working

    options = parse_options(config or ())
    check_model(model, options)
    with working("loading transformers"):
        from estfx.quiet import quiet_transformers
        from estfx.report import inspect as report_of
        from estfx.training import build_model

    with working(f"building {model}"), quiet_transformers():
        built = build_model(model, options, weightless_above=WEIGHTLESS_ABOVE)
        with built.mode:
            report = report_of(built.model, built.example_inputs, layers=layers or None)
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
    else:
        from estfx.cli.report_tree import print_tree
        from estfx.showing import print_shown

        (print_tree if tree else print_shown)(Console(), report)
