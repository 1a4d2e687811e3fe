"""`estfx dump`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from estfx.cli.commands.options import WEIGHTLESS_ABOVE, AsJson, ConfigValues, LayerNames, Model, check_file

__all__ = ["dump"]

Format = Literal["text", "json", "dot", "svg", "html", "model-explorer"]


def dump(
    model: Model,
    stage: Annotated[int, typer.Option("--stage", metavar="N", help="The stage, from 1.")] = 1,
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", help="A schedule in YAML. Default: what --preset says."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="In place of --schedule, over 150,000 steps; as for estfx plan.")
    ] = None,
    config: ConfigValues = None,
    layers: LayerNames = None,
    output: Annotated[Format, typer.Option("--format", help="How to write the graphs.")] = "text",
    diff: Annotated[bool, typer.Option("--diff", help="Print the unified difference to the whole layers.")] = False,
    code: Annotated[bool, typer.Option("--code", help="Print Python that runs, a function a kind of layers.")] = False,
    after: Annotated[
        str | None, typer.Option("--pass", metavar="NAME", help="The graphs as that pass left them.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the graphs of a model's layers as a stage runs them: each value with its shape, axes and source line.

    estfx dump gpt2 --stage 1 --diff

    estfx dump llama --format html --out llama.html

    With ESTFX_DUMP=folder in the environment every command writes each graph after each pass into that folder.
    """
    from estfx.errors import ScheduleError
    from estfx.schedules import Schedule, preset_schedule
    from estfx.settings import SettingsError
    from estfx.training import check_model, holds_weights, parse_options
    from estfx.waiting import working

    chosen = [name for name, asked in (("json", as_json), ("diff", diff), ("code", code)) if asked]
    if len(chosen) + (output != "text") > 1 and not (as_json and output == "json" and len(chosen) == 1):
        given = [f"--{name}" for name in chosen] + ([f"--format {output}"] if output != "text" else [])
        raise SettingsError(f"{' and '.join(given)} exclude each other; choose one.")
    if schedule is not None and preset is not None:
        raise SettingsError("give either --schedule or --preset.")
    if out is not None:
        check_file("--out", out)
    options = parse_options(config or ())
    check_model(model, options)
    stages = (
        Schedule.from_yaml(schedule)
        if schedule is not None
        else preset_schedule(preset, 150_000, loaded=holds_weights(model))
    )
    if not 1 <= stage <= len(stages.stages):
        raise ScheduleError(f"there is no stage {stage}; the schedule has the stages 1 to {len(stages.stages)}.")
    with working("loading transformers"):
        from estfx.dumping import dump as dumped
        from estfx.quiet import quiet_transformers
        from estfx.training import build_model

    with working(f"building {model}"), quiet_transformers():
        built = build_model(model, options, weightless_above=WEIGHTLESS_ABOVE)
        with built.mode:
            text = dumped(
                built.model,
                stages,
                stage - 1,
                built.example_inputs,
                layers=layers or None,
                format=chosen[0] if chosen else output,
                after=after,
            )
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}.") from None
    typer.echo(f"written to {out}", err=True)
