"""The command line. Exit status 0: done, 1: the work failed, 2: bad input, told in one message without a traceback;
3: a training run was told to terminate, and can be resumed.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from estfx.errors import EstfxError, VerifyError

# what only one command needs is imported in it: transformers takes seconds, and --help should not

__all__ = ["app", "main"]


class _TellsFaults(TyperGroup):
    """Turns the package's errors into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:  # typer carries a click of its own, with its own Context
        try:
            return super().invoke(ctx)
        except EstfxError as error:
            for line in (f"error: {error}", *getattr(error, "__notes__", ())):
                typer.echo(line, err=True)
            raise typer.Exit(_status(error)) from None


app = typer.Typer(
    name="estfx",
    cls=_TellsFaults,
    help="Evolving Subnetwork Training: train a random part of a decoder, and let it grow until it is the whole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_REAL = 500_000_000  # parameters; larger models are looked at without weights

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


def main() -> None:
    """The script's entry."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"estfx {version('estfx')}")
        except PackageNotFoundError:
            typer.echo("estfx, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="The run. Without one: a small GPT-2, in minutes.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Overrides a value of the run. May be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Short for --set model.name=MODEL: gpt2, llama, …")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/<model>-<time>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, from its last complete checkpoint.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="With --resume: go on with another configuration than before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a decoder through its stages; without a CONFIG on the text of Python's own standard library.

    Runs under torchrun as it is: torchrun --nproc-per-node 2 -m estfx train …
    """
    from estfx.settings import SettingsError
    from estfx.train_config import RunConfig

    if resume and out is None:
        raise SettingsError("--resume goes on with the run in a folder; say which by --out.")
    if accept_changes and not resume:
        raise SettingsError("--accept-changes is for --resume.")
    named = [f"model.name={json.dumps(model)}"] if model is not None else []
    changes = [*(overrides or ()), *named]
    if resume and config is None and out is not None and (out / "config.yaml").exists():
        config = out / "config.yaml" if changes else None
    run = None if resume and config is None else RunConfig.load(config, changes)
    from estfx.train import default_folder
    from estfx.train import train as run_training

    folder = out if out is not None else default_folder((run or RunConfig()).model.name)
    summary = run_training(run, folder, Console(stderr=True), resume=resume, accept_changes=accept_changes)
    if int(os.environ.get("RANK", "0")) != 0:  # the first one prints
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        from estfx.train_summary import print_summary

        print_summary(Console(), summary)


@app.command()
def inspect(model: Model, config: ConfigValues = None, layers: LayerNames = None, as_json: AsJson = False) -> None:
    """Show a model's layers, and what can be narrowed in them: axes, roles, reasons."""
    import estfx
    from estfx.model_spec import build_model, parse_options
    from estfx.quiet import quiet_transformers

    with quiet_transformers():
        built = build_model(model, parse_options(config or ()), weightless_above=_REAL)
        with built.mode:
            report = estfx.inspect(built.model, built.example_inputs, layers=layers or None)
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
    else:
        from estfx.report_table import print_report

        print_report(Console(), report)


@app.command()
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
        built = build_model(model, parse_options(config or ()), weightless_above=_REAL)
        with built.mode:
            text = estfx.dump(built.model, stages, stage - 1, built.example_inputs, layers=layers or None)
    if as_json:
        typer.echo(json.dumps({"model": model, "stage": stage, "format": output, "text": text}, indent=2))
    else:
        typer.echo(text)


@app.command()
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
    from estfx.bench import BenchSettings
    from estfx.bench import bench as measure
    from estfx.model_spec import parse_options

    chosen = {"model": {"name": model, "config": parse_options(config or ())}, **parse_options(overrides or ())}
    progress = Console(stderr=True)
    result = measure(BenchSettings.from_mapping(chosen), lambda line: progress.print(line, highlight=False))
    if out is not None:
        out.write_text(result.model_dump_json(indent=2) + "\n")
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        from estfx.bench.table import print_result

        print_result(Console(), result)


def _status(error: EstfxError) -> int:
    if isinstance(error, VerifyError):
        return 1
    from estfx.bench import BenchFailedError
    from estfx.train import StoppedError
    from estfx.train_recorder import TrainingFailedError

    if isinstance(error, StoppedError):
        return 3
    return 1 if isinstance(error, TrainingFailedError | BenchFailedError) else 2
