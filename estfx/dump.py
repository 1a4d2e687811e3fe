"""The rewritten graphs of a stage, as text."""

from __future__ import annotations

from torch import nn

from estfx.errors import ScheduleError
from estfx.layer_names import LayerPatterns
from estfx.printing import graph_text
from estfx.programs import analysed
from estfx.runtime import stage_counts
from estfx.schedule import Schedule
from estfx.trace import trace

__all__ = ["dump"]


def dump(
    model: nn.Module,
    schedule: Schedule,
    stage_index: int,
    example_inputs: object = None,
    *,
    layers: LayerPatterns | None = None,
) -> str:
    """The narrowed graph of every kind of layer at `schedule.stages[stage_index]`, before compilation.

    `layers` names the layers, as for `trace`.
    """
    if not 0 <= stage_index < len(schedule.stages):
        raise ScheduleError(
            f"stage {stage_index} was asked for, but the schedule has {len(schedule.stages)}: "
            f"0 to {len(schedule.stages) - 1}."
        )
    stage = schedule.stages[stage_index]
    decoder = trace(model, example_inputs, layers=layers)
    parts = [f"# {type(model).__name__}, stage {stage_index + 1} of {len(schedule.stages)}, from step {stage.start}"]
    for name, traced in decoder.traced.items():
        variant = analysed(traced)
        counts = stage_counts(schedule, variant.roles, stage)
        names = [layer for layer, program in decoder.layers.items() if program == name]
        kept = dict(counts)
        shown = [f"{r.name} {kept.get(r.name, r.axis.size)} of {r.axis.size}" for r in variant.roles.found]
        runs = f"{stage.layers:.0%} of them run" if variant.residuals.droppable else "all of them run"
        parts.append(f"# {name}: {len(names)} layers ({names[0]} … {names[-1]}), {runs}; {', '.join(shown) or 'whole'}")
        parts.append(graph_text(variant.narrowed(counts)))
    return "\n".join(parts)
