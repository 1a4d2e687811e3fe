"""A plan for reading."""

from __future__ import annotations

from rich.console import Console

from estfx.cli.plan_estimate import Estimate
from estfx.cli.plan_losses import KnownLosses
from estfx.costs import Plan
from estfx.showing import print_shown

__all__ = ["print_plan"]


def print_plan(
    console: Console,
    model: str,
    plan: Plan,
    estimate: Estimate | None = None,
    papers: Plan | None = None,
    losses: KnownLosses | None = None,
) -> None:
    """Prints the stages, what each costs, what the schedule saves, and what is known of its loss.

    If `papers` is the plan of EST, it prints what that saves, too.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    say(model)
    print_shown(console, plan)
    if papers is not None:
        say(
            f"instead         --preset est, the paper's, saves {papers.saving_model:.2%} of the whole model's, and is "
            f"whole from step {papers.stages[-1].start:,} on"
        )
    for number, line in enumerate(losses.lines() if losses is not None else ()):
        say(f"{'loss' if number == 0 else '':16}{line}")
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
