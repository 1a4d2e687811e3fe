"""A plan for reading."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from estfx.cli.plan_estimate import Estimate
from estfx.costs import Plan

__all__ = ["print_plan"]

GIB = 2**30
PARTS = {"heads": "attention", "neurons": "MLP", "several": "both in one", "other": "rest of the layers"}


def print_plan(console: Console, model: str, plan: Plan, estimate: Estimate | None = None) -> None:
    """Prints the stages, what each costs, and what the schedule saves."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for number in range(1, len(plan.stages) + 1):
        table.add_column(f"stage {number}", justify="right", no_wrap=True)
    table.add_column("whole", justify="right", no_wrap=True)
    for name, cells in _rows(plan):
        table.add_row(name, *cells)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    whole = plan.whole
    say(f"{model}: batches of {plan.batch_size} × {plan.seq_len} tokens, {whole.flops_model:.3e} FLOPs a step whole")
    console.print(table)
    tokens = plan.whole.steps * plan.batch_size * plan.seq_len
    flops = sum(stage.steps * stage.flops_model for stage in plan.stages)
    say(f"FLOPs saved     {plan.saving_layers:.2%} of the layers', {plan.saving_model:.2%} of the whole model's")
    say(f"the run         {tokens:.3e} tokens, {flops:.3e} FLOPs, whole {whole.steps * whole.flops_model:.3e}")
    say(f"compilations    {plan.programs} graphs of layers for one batch shape, and some around the layers")
    if estimate is not None:
        saved = estimate.hours_whole - estimate.hours
        say(
            f"time            {estimate.hours:,.1f} hours on {estimate.num_devices} × {estimate.hardware}, whole "
            f"{estimate.hours_whole:,.1f}: {saved:,.1f} saved"
        )
        if estimate.cost is not None and estimate.cost_whole is not None:
            say(f"cost            {estimate.cost:,.2f}, whole {estimate.cost_whole:,.2f}")
        say(
            f"                at {estimate.mfu:.0%} ({estimate.mfu_is}) of {estimate.peak_flops / 1e12:,.0f} TFLOPs a "
            "second, as if time were FLOPs; compilation and gathers are left out"
        )
    say(
        "Heads and neurons are counted over all layers, also those that are skipped. Activations are what the layers "
        "keep for the backward pass, uncompiled and without checkpointing."
    )


def _rows(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """The names of figures, and what they are in every stage and for the whole model."""
    each, whole = [*plan.stages, plan.whole], plan.whole
    yield "first step", [*(f"{s.start:,}" for s in plan.stages), "0"]
    yield "steps", [f"{s.steps:,}" for s in each]
    for unit, (_, number) in whole.units.items():
        if number:
            yield f"{unit} kept", [f"{s.units[unit][0]:,}" for s in each]
    yield "FLOPs, layers", [f"{s.flops_layers / whole.flops_layers:.1%}" for s in each]
    yield "FLOPs, model", [f"{s.flops_model / whole.flops_model:.1%}" for s in each]
    for part, of in whole.flops_forward.items():
        yield f"forward, {PARTS.get(part, part)}", [f"{s.flops_forward.get(part, 0) / of:.1%}" for s in each]
    yield "parameters at work", [f"{s.parameters / 1e6:,.1f} M" for s in each]
    yield "activations", [f"{s.activation_bytes / GIB:,.2f} GiB" for s in each]
