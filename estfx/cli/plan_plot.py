"""A plan as a picture."""

from __future__ import annotations

from pathlib import Path

from estfx.costs import Plan
from estfx.settings import SettingsError

__all__ = ["plot_plan"]


def plot_plan(plan: Plan, title: str, path: Path) -> None:
    """FLOPs of a step over the steps, the whole model's beside them; `path` ends in .png or .svg."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "to draw a plan, matplotlib is needed: pip install 'estfx[plot]'. --json needs nothing."
        ) from None
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    whole = plan.whole.flops_model
    edges = [plan.stages[0].start, *(stage.stop for stage in plan.stages)]
    heights = [stage.flops_model / whole for stage in plan.stages]
    axes.stairs(heights, edges, fill=True, color="#7aa6d8", label="computed")
    axes.axhspan(0, 1, color="#e9edf2", zorder=0, label="saved")
    for number, (stage, height) in enumerate(zip(plan.stages, heights, strict=True), start=1):
        kept = f"heads {stage.heads:g}\nneurons {stage.neurons:g}\nlayers {stage.layers:g}"
        middle = (stage.start + stage.stop) / 2
        axes.text(middle, height / 2, f"stage {number}\n{height:.1%}\n{kept}", ha="center", va="center", fontsize=8)
    axes.set(
        xlabel="optimizer step",
        ylabel="FLOPs of a step / whole model's",
        xlim=(edges[0], edges[-1]),
        ylim=(0, 1.02),
        title=f"{title}: {plan.saving_model:.1%} of the model's FLOPs saved, {plan.saving_layers:.1%} of the layers'",
    )
    axes.title.set_fontsize(9)
    axes.legend(loc="lower right", fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
