"""The figures of one run, as plain data: the run's own, where it has written them down."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from estfx.run_report.runs import Run
from estfx.training import LEFT_OUT

__all__ = ["facts_of"]


def facts_of(run: Run) -> dict[str, Any]:
    """Sizes, totals over the steps done, losses, savings and stages. None stands for what the folder does not tell."""
    summary = run.summary or {}
    steps = run.steps
    last_loss = float(steps.loss[-1])
    return {
        "label": run.label,
        "folder": str(run.path),
        "model": summary.get("model") or run.settings("model").get("name"),
        "parameters": summary.get("parameters"),
        "finished": run.finished,
        "compiled": summary.get("compiled"),
        "steps": len(steps),
        "steps_planned": run.steps_planned,
        "tokens": int(steps.tokens.sum()),
        "flops": float(steps.flops.sum()),
        "seconds_of_steps": float(steps.seconds.sum()),
        "wall_seconds": summary.get("wall_seconds"),
        "training_loss": last_loss if np.isfinite(last_loss) else None,
        "held_out_loss": _held_out(run),
        "flops_saved": summary.get("flops_saved"),
        "stages": summary["stages"] if "stages" in summary else _stages(run),
        "graphs": _graphs(run),
    }


def _held_out(run: Run) -> dict[str, Any]:
    """Before and after training; of a run that is not finished, `after` is the last one taken on the way."""
    values = dict(run.held_out)
    later = {step: loss for step, loss in values.items() if step > 0}
    last = max(later, default=None)
    return {
        "before": values.get(0),
        "after": None if last is None else later[last],
        "after_steps": last,
        "tokens": ((run.summary or {}).get("held_out_loss") or {}).get("tokens"),
    }


def _stages(run: Run) -> list[dict[str, Any]]:
    """As a summary has them, as far as the steps done tell."""
    stages: list[dict[str, Any]] = []
    asked = run.schedule.stages if run.schedule is not None else ()
    for number in np.unique(run.steps.stage):
        mine = run.steps.stage == number
        stage = asked[number - 1] if number <= len(asked) else None
        seconds = run.steps.seconds[mine][LEFT_OUT:].tolist()
        stages.append(
            {
                "stage": int(number),
                "start": int(run.steps.step[mine][0]),
                "stop": int(run.steps.step[mine][-1]) + 1,
                **{name: None if stage is None else getattr(stage, name) for name in ("heads", "neurons", "layers")},
                "flops_of_whole_layers": None,
                "flops_of_whole_model": None,
                "seconds_per_step": median(seconds) if seconds else None,
                "steps_measured": len(seconds),
                "of_whole": None,
            }
        )
    return stages


def _graphs(run: Run) -> dict[str, Any] | None:
    """What torch.compile compiled, and at which steps; None if the run has not counted it."""
    compiled = run.steps.compiled
    if compiled is None:
        return None
    starts = {int(run.steps.step[run.steps.stage == number][0]) for number in np.unique(run.steps.stage)}
    steps = [
        {"step": int(step), "graphs": int(count), "begins_a_stage": int(step) in starts}
        for step, count in zip(run.steps.step, compiled, strict=True)
        if count
    ]
    return {"total": int(compiled.sum()), "steps": steps}
