"""The graphs of all kinds of layers in a stage: whole, narrowed, and after any of the passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from estfx.errors import EstfxError, ScheduleError, TraceError
from estfx.graphs import clone, run_passes
from estfx.passes import analysis, specialisation
from estfx.programs import Counts, Variant, analysed, stage_counts
from estfx.schedules import Schedule, Stage
from estfx.settings import nearest
from estfx.tracing import LayerPatterns, trace

__all__ = ["KindGraph", "StageGraphs", "pass_names", "stage_graphs"]


@dataclass(frozen=True)
class KindGraph:
    """A kind of layers, as it runs in a stage."""

    name: str
    layers: tuple[str, ...]
    whole: GraphModule
    graph: GraphModule  # narrowed, or as it is after the pass that was asked for
    roles: Mapping[str, tuple[int, int]]  # name → units kept, units there are
    droppable: bool
    reason: str  # why not
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StageGraphs:
    """What a stage runs. `outer` is the decoder with each layer as one call, where it can be exported."""

    model: str  # class name
    number: int  # of the stage, from 1
    num_stages: int
    stage: Stage
    kinds: tuple[KindGraph, ...]
    left: Mapping[str, str]  # layers without a graph, and why
    outer: GraphModule | None = None
    outer_note: str = ""


def pass_names() -> tuple[str, ...]:
    """The names of the passes, in the order in which they run."""
    return tuple(each.name() for each in (*analysis(), *specialisation({})))


def stage_graphs(
    model: nn.Module,
    schedule: Schedule,
    stage_index: int,
    example_inputs: object = None,
    *,
    layers: LayerPatterns | None = None,
    after: str | None = None,
    with_outer: bool = False,
) -> StageGraphs:
    """The graphs of `schedule.stages[stage_index]`, before compilation; with `after` as they are after that pass.

    Raises ScheduleError for a stage that does not exist, EstfxError for a pass that does not.
    """
    if not 0 <= stage_index < len(schedule.stages):
        raise ScheduleError(
            f"stage {stage_index} was asked for, but the schedule has {len(schedule.stages)}: "
            f"0 to {len(schedule.stages) - 1}."
        )
    if after is not None and after not in pass_names():
        raise EstfxError(f"there is no pass {after!r}; {nearest(after, pass_names())}")
    stage = schedule.stages[stage_index]
    decoder = trace(model, example_inputs, layers=layers)
    early: list[str | None] = [each.name() for each in analysis()]
    kinds = []
    for name, traced in decoder.traced.items():
        exported = clone(traced.graph) if after in early else None
        variant = analysed(traced, scales=schedule.scales)
        counts = stage_counts(schedule, variant.roles, stage)
        kept = dict(counts)
        kinds.append(
            KindGraph(
                name=name,
                layers=tuple(layer for layer, program in decoder.layers.items() if program == name),
                whole=variant.traced.graph,
                graph=_after(after, exported, variant, counts),
                roles={r.name: (kept.get(r.name, r.axis.size), r.axis.size) for r in variant.roles.found},
                droppable=variant.residuals.droppable,
                reason=variant.residuals.reason,
                notes=variant.roles.notes,
            )
        )
    outer, outer_note = None, ""
    if with_outer:
        try:
            outer = decoder.outer
        except TraceError as error:
            outer_note = str(error)
    return StageGraphs(
        model=type(model).__name__,
        number=stage_index + 1,
        num_stages=len(schedule.stages),
        stage=stage,
        kinds=tuple(kinds),
        left=decoder.left,
        outer=outer,
        outer_note=outer_note,
    )


def _after(name: str | None, exported: GraphModule | None, variant: Variant, counts: Counts) -> GraphModule:
    if name is None:
        return variant.narrowed(counts)
    if exported is not None:
        passes = analysis()
        until = next(i for i, each in enumerate(passes, start=1) if each.name() == name)
        return run_passes(exported, passes[:until])
    wanted = dict(counts)
    kept = {role.axis: wanted[role.name] for role in variant.roles.found if role.name in wanted}
    rewrites = specialisation(kept, scaled=variant.scales)
    until = next((i for i, each in enumerate(rewrites, start=1) if each.name() == name), len(rewrites))
    return run_passes(clone(variant.traced.graph), rewrites[:until])
