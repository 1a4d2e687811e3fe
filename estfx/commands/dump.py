"""`estfx dump`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from estfx.commands.options import WEIGHTLESS_ABOVE, AsJson, ConfigValues, LayerNames, Model

__all__ = ["dump"]


def dump(
    model: Model,
    stage: Annotated[int, typer.Option("--stage", metavar="N", help="The stage, from 1.")],
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", help="A schedule in YAML. Default: the three stages of the paper."),
    ] = None,
    config: ConfigValues = None,
    layers: LayerNames = None,
    output: Annotated[Literal["text"], typer.Option("--format", help="How to write the graphs.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Print the graphs of a model's layers as a stage runs them."""
    import estfx
    from estfx.errors import ScheduleError
    from estfx.model_spec import build_model, parse_options
    from estfx.quiet import quiet_transformers

    stages = estfx.Schedule.from_yaml(schedule) if schedule is not None else estfx.Schedule.est(150_000)
    if not 1 <= stage <= len(stages.stages):
        raise ScheduleError(f"there is no stage {stage}; the schedule has the stages 1 to {len(stages.stages)}.")
    with quiet_transformers():
        built = build_model(model, parse_options(config or ()), weightless_above=WEIGHTLESS_ABOVE)
        with built.mode:
            text = estfx.dump(built.model, stages, stage - 1, built.example_inputs, layers=layers or None)
    if as_json:
        typer.echo(json.dumps({"model": model, "stage": stage, "format": output, "text": text}, indent=2))
    else:
        typer.echo(text)
