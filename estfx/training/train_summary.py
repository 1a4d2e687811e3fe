"""What a training run comes to: held-out loss, FLOPs saved, and seconds per step by stage against the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from estfx.costs import Plan
from estfx.training.step_records import LEFT_OUT, StepRecord

__all__ = ["print_summary", "stage_seconds"]


def stage_seconds(plan: Plan, steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Seconds per step of every stage, as the median over its steps, without the first ones, which compile.

    `of_whole` is the share of the whole model's seconds, taken from the stage of the same run that trains it; None
    if there is none, or if a stage is too short to tell.
    """
    stages: list[dict[str, Any]] = []
    for number, stage in enumerate(plan.stages, start=1):
        seconds = [each.seconds for each in steps if each.stage == number][LEFT_OUT:]
        stages.append(
            {
                "stage": number,
                "start": stage.start,
                "stop": stage.stop,
                "heads": stage.heads,
                "neurons": stage.neurons,
                "layers": stage.layers,
                "flops_of_whole_layers": stage.flops_layers / plan.whole.flops_layers,
                "flops_of_whole_model": stage.flops_model / plan.whole.flops_model,
                "seconds_per_step": median(seconds) if seconds else None,
                "steps_measured": len(seconds),
            }
        )
    whole = next((each for each in stages if each["heads"] == each["neurons"] == each["layers"] == 1), None)
    reference = whole["seconds_per_step"] if whole else None
    for each in stages:
        own = each["seconds_per_step"]
        each["of_whole"] = own / reference if own is not None and reference else None
    return stages


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Prints a summary as `estfx train` writes it."""
    table = Table(title="seconds per step, by stage", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    figures = ("heads", "neurons", "layers", "layers'\nFLOPs", "model's\nFLOPs", "seconds\na step", "of the\nwhole's")
    for column in ("stage", "steps", *figures):
        table.add_column(column, justify="right", no_wrap=True)
    for each in summary["stages"]:
        table.add_row(
            str(each["stage"]),
            f"{each['start']}-{each['stop'] - 1}",
            *(f"{each[key]:g}" for key in ("heads", "neurons", "layers")),
            f"{each['flops_of_whole_layers']:.1%}",
            f"{each['flops_of_whole_model']:.1%}",
            "-" if each["seconds_per_step"] is None else f"{each['seconds_per_step']:.3f}",
            "-" if each["of_whole"] is None else f"{each['of_whole']:.2f}",
        )
    console.print(table)
    loss, saved, wall = summary["held_out_loss"], summary["flops_saved"], summary["wall_seconds"]
    compiled = summary["compiled"]
    too_fast = [
        f"stage {each['stage']} took {each['of_whole']:.2f} of the whole's seconds for "
        f"{each['flops_of_whole_model']:.2f} of its FLOPs, so something else slowed the whole's steps."
        for each in summary["stages"]
        if each["of_whole"] is not None and each["of_whole"] < 0.95 * each["flops_of_whole_model"]
    ]
    for line in (
        f"Medians of one run, compiled; the first {LEFT_OUT} steps of each stage compile and are left out."
        if compiled
        else f"Medians of one run; the first {LEFT_OUT} steps of each stage are left out.",
        *(f"Take the seconds with care: {each}" for each in too_fast),
        f"held-out loss   {loss['before']:.4f} before, {loss['after']:.4f} after (whole model, nats a token, "
        f"{loss['tokens']} tokens)",
        f"FLOPs saved     {saved['layers']:.2%} of the layers', {saved['model']:.2%} of the whole model's",
        f"took            {wall['total']:.0f} s: {wall['prepare']:.0f} s to prepare, {wall['train']:.0f} s to train"
        + compiled * " (compilation included)",
        f"written to      {summary['folder']}",
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
