"""`estfx plan`."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from estfx.cli.commands.options import WEIGHTLESS_ABOVE, AsJson, ConfigValues, LayerNames, Model, check_file, check_plot

__all__ = ["plan"]


def plan(
    model: Model,
    schedule: Annotated[
        Path | None,
        typer.Argument(metavar="[SCHEDULE.yaml]", help="A schedule. Default: what --preset says."),
    ] = None,
    config: ConfigValues = None,
    layers: LayerNames = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences of an optimizer step.")] = 8,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=2, help="Tokens of a sequence. Default: 1024, or all positions if fewer."),
    ] = None,
    total_steps: Annotated[
        int | None, typer.Option("--total-steps", min=1, help="Optimizer steps. Default: the schedule's, or 150,000.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="In place of SCHEDULE: compound (the default), stacking, est, the paper's stages, or growing, the "
            "default for a folder with weights.",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", help="Keep fraction of the preset: 0.25 of growing, 0.5 of the others."),
    ] = None,
    target_saving: Annotated[
        float | None,
        typer.Option(
            "--target-saving",
            metavar="SHARE",
            help="Moves the boundaries so that this share of the whole model's FLOPs is saved: 0.25.",
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option("--hardware", metavar="NAME", help="Estimates hours: b200, h200, h100, a100, l40s, mi300x, …"),
    ] = None,
    num_devices: Annotated[int, typer.Option("--num-devices", min=1, help="Of that hardware.")] = 1,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak that is reached. Assumed 0.4, if not given.")
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option("--bench", metavar="FILE", help="Takes the MFU from what `estfx bench --out FILE` measured."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Of one device for an hour; adds the cost.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draws the stages: a .png or .svg.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Writes a run for `estfx train FILE`, with this schedule."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a schedule costs and saves on a model, from shapes alone: FLOPs, parameters, memory, hours.

    estfx plan gpt2 --target-saving 0.25 --out run.yaml

    estfx plan llama --config num_hidden_layers=80 --config hidden_size=8192 --hardware h200 --num-devices 64
    """
    _refuse(target_saving, hardware, plot, out)
    from estfx.bench import mfu_measured
    from estfx.errors import ScheduleError
    from estfx.schedules import Schedule, preset_of, preset_schedule
    from estfx.settings import SettingsError
    from estfx.training import check_model, holds_weights, parse_options
    from estfx.waiting import working

    if hardware is None and (mfu is not None or bench is not None or price is not None or num_devices != 1):
        raise SettingsError("--mfu, --bench, --price and --num-devices say how fast some hardware is: add --hardware.")
    if mfu is not None and bench is not None:
        raise SettingsError("give either --mfu or --bench, which measured it.")
    if mfu is not None and not 0 < mfu <= 1:
        raise SettingsError(f"--mfu is a share above 0 and at most 1, such as 0.4; got {mfu:g}.")
    if schedule is not None and (preset is not None or keep is not None):
        raise SettingsError("give either a schedule's file, or --preset and --keep.")
    options = parse_options(config or ())
    check_model(model, options, length=("--seq-len", seq_len))
    stages = (
        Schedule.from_yaml(schedule)
        if schedule is not None
        else preset_schedule(preset, total_steps or 150_000, keep, loaded=holds_weights(model))
    )
    if schedule is not None and total_steps is not None:
        stages = stages.model_copy(update={"total_steps": total_steps})
    compared = [stages]
    if schedule is None and preset is None:
        with suppress(ScheduleError):  # of fewer steps than stages
            compared.append(preset_schedule("est", total_steps or 150_000, keep))
    measured = mfu_measured(bench) if bench is not None else None
    with working("loading transformers"):
        from estfx.cli.plan_estimate import Estimate, estimated, of_bytes, run_settings
        from estfx.cli.plan_losses import KnownLosses
        from estfx.costs import little_left, plans, schedule_saving
        from estfx.quiet import quiet_transformers
        from estfx.training import build_model, fitting_length
    with working(f"building {model}"), quiet_transformers():
        built = build_model(model, options, weightless_above=WEIGHTLESS_ABOVE)
        length = fitting_length(built.model, seq_len, "--seq-len", default=1024)
        with built.mode:
            found, *others = plans(
                built.model,
                compared,
                batch_size=batch_size,
                seq_len=length,
                example_inputs=built.example_inputs,
                layers=layers or None,
            )
    papers = others[0] if others else None
    if target_saving is not None:
        stages = schedule_saving(found, stages, target_saving)
        found = found.with_boundaries(stages)
        planned, papers = papers, None
        if planned is not None:
            with suppress(ScheduleError):  # where it cannot save as much
                papers = planned.with_boundaries(schedule_saving(planned, compared[1], target_saving))
    named = [name for name in (preset_of(stages), None if papers is None else "est") if name]
    losses = KnownLosses.of(found.kind_of_run(built.model), named)
    estimate: Estimate | None = None
    if hardware is not None:
        estimate = estimated(found, hardware, num_devices, mfu, measured, price)
    if plot is not None:
        found.plot(plot, title=model)
    if out is not None:
        run_settings(model, options, built.model, found, stages).to_yaml(out)
        if note := of_bytes(model, options, built.model):
            typer.echo(note, err=True)
    if as_json:
        shown: dict[str, Any] = {
            "model": model,
            "schedule": stages.model_dump(mode="json"),
            "plan": found.model_dump(mode="json"),
            "saving": {"layers": found.saving_layers, "model": found.saving_model},
            "est": None if papers is None else papers.model_dump(mode="json"),
            "estimate": None if estimate is None else estimate.model_dump(mode="json"),
            "losses": losses.model_dump(mode="json"),
        }
        typer.echo(json.dumps(shown, indent=2))
    else:
        from estfx.cli.plan_table import print_plan

        print_plan(Console(), model, found, estimate, papers=papers, losses=losses)
    if (warning := little_left(stages)) is not None:
        typer.echo(f"warning: {warning}", err=True)
    for path in filter(None, (plot, out)):
        typer.echo(f"written to {path}", err=True)


def _refuse(target_saving: float | None, hardware: str | None, plot: Path | None, out: Path | None) -> None:
    """Raises SettingsError for options that cannot be, before anything is imported that takes seconds."""
    from estfx.settings import SettingsError

    if target_saving is not None and not 0 < target_saving < 1:
        percent = f"; for {target_saving:g} % pass {target_saving / 100:g}" if 1 < target_saving < 100 else ""
        raise SettingsError(
            f"--target-saving is a share between 0 and 1, such as 0.25; got {target_saving:g}{percent}."
        )
    check_plot(plot)
    if out is not None:
        check_file("--out", out)
    if hardware is not None:
        from estfx.costs import peak_of

        peak_of(hardware)
