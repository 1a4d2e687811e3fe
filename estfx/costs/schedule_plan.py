"""What a schedule will cost: FLOPs, parameters and activation memory by stage, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from torch import nn

from estfx.costs.flops import Surroundings, measure_surroundings
from estfx.costs.layer_costs import LayerCosts
from estfx.costs.parameters_at_work import CallAtWork, parameters_at_work
from estfx.costs.shown_plan import plan_blocks, plan_chart
from estfx.costs.stage_plan import StagePlan
from estfx.errors import ScheduleError
from estfx.programs import Variant, analysed, possible_counts, stage_counts
from estfx.schedules import KindOfRun, Schedule, Stage, layers_of_stage
from estfx.showing import Block, Shown
from estfx.tracing import LayerCall, LayerPatterns, sized_inputs, trace
from estfx.waiting import tell, working

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plan", "plan", "plans"]


class Plan(Shown, BaseModel):
    """A schedule's costs on a model. FLOPs are counted without regard to causality, and no recomputation is counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int
    seq_len: int
    stages: list[StagePlan]
    whole: StagePlan  # the whole model over all steps
    programs: int = 0  # graphs of layers that torch.compile makes for one batch shape; it makes some around them too

    def with_boundaries(self, schedule: Schedule) -> Plan:
        """The plan of a schedule with the same stages that start at other steps: a step of each costs what it did."""
        starts = [stage.start for stage in schedule.stages]
        total = schedule.total_steps or self.whole.stop
        places = zip(self.stages, starts, [*starts[1:], total], strict=True)
        moved = [stage.model_copy(update={"start": start, "stop": stop}) for stage, start, stop in places]
        return self.model_copy(update={"stages": moved, "whole": self.whole.model_copy(update={"stop": total})})

    def flops_until(self, num_steps: int) -> float:
        """The FLOPs of the whole model's graph, forward and backward, in the first `num_steps` optimizer steps."""
        return sum(
            stage.flops_model * (min(num_steps, stage.stop) - stage.start)
            for stage in self.stages
            if num_steps > stage.start
        )

    def kind_of_run(self, model: nn.Module) -> KindOfRun:
        """What the run of this model is, to be compared with others."""
        parameters, tokens = self.whole.parameters, self.batch_size * self.seq_len
        return KindOfRun(
            family=getattr(getattr(model, "config", None), "model_type", None),
            parameters=round(parameters),
            steps=self.whole.steps,
            tokens_per_parameter=self.whole.steps * tokens / parameters,
            tokens_per_step=tokens,
        )

    @property
    def saving_layers(self) -> float:
        """The fraction of the layers' training FLOPs that the schedule saves."""
        return 1 - sum(s.steps * s.flops_layers for s in self.stages) / (self.whole.steps * self.whole.flops_layers)

    @property
    def saving_model(self) -> float:
        """The fraction of the whole model's training FLOPs that the schedule saves."""
        return 1 - sum(s.steps * s.flops_model for s in self.stages) / (self.whole.steps * self.whole.flops_model)

    def plot(self, path: str | Path | None = None, *, title: str | None = None) -> Figure:
        """Draws the FLOPs of a step over the steps, as a figure of matplotlib; writes it to `path`, if one is given.

        Raises SettingsError if matplotlib is missing or the file cannot be written.
        """
        saved = f"{self.saving_model:.1%} of the model's FLOPs saved, {self.saving_layers:.1%} of the layers'"
        return plan_chart(self.stages, self.whole, f"{title}: {saved}" if title else saved, path)

    def _blocks(self) -> Iterator[Block]:
        saved = f"{self.saving_layers:.2%} of the layers', {self.saving_model:.2%} of the whole model's"
        programs = f"{self.programs} graphs of layers for one batch shape, and some around the layers"
        lines = (f"FLOPs saved     {saved}", f"compilations    {programs}")
        return plan_blocks(self.stages, self.whole, (self.batch_size, self.seq_len), lines)


def plan(
    model: nn.Module,
    schedule: Schedule,
    *,
    batch_size: int,
    seq_len: int,
    example_inputs: object = None,
    layers: LayerPatterns | None = None,
) -> Plan:
    """Costs by stage for batches of `batch_size` sequences of `seq_len` tokens. Weights may be on the meta device.

    `example_inputs` and `layers` are as for `trace`; of the example the token ids (integers `[batch, sequence]`) are
    given the sizes asked for. Each call of a layer counts; its parameters count once.

    Raises ScheduleError if the schedule does not say how many steps there are in all.
    """
    (found,) = plans(
        model,
        [schedule],
        batch_size=batch_size,
        seq_len=seq_len,
        example_inputs=example_inputs,
        layers=layers,
    )
    return found


@working("looking for the layers")
def plans(
    model: nn.Module,
    schedules: Sequence[Schedule],
    *,
    batch_size: int,
    seq_len: int,
    example_inputs: object = None,
    layers: LayerPatterns | None = None,
) -> list[Plan]:
    """The plan of each schedule, as `plan` makes it; the model is traced once."""
    for schedule in schedules:
        if schedule.in_shares:
            raise ScheduleError(
                "the schedule is made of shares of a run whose length is not known; say it: schedule.over(150_000)."
            )
        if schedule.total_steps is None:
            raise ScheduleError(
                "the schedule has no total_steps, so its last stage has no end. Say it: Schedule(..., "
                "total_steps=150_000)."
            )
    decoder = trace(model, example_inputs, layers=layers)
    variants = {name: analysed(traced) for name, traced in decoder.traced.items()}
    tell("counting what every stage costs")
    surroundings = measure_surroundings(decoder, sized_inputs(model, example_inputs, batch_size, seq_len))
    costs = LayerCosts(model, layers, decoder, variants, batch_size, seq_len)
    calls = [(info.call, variants[info.program]) for info in decoder.infos.values()]
    return [_planned(schedule, calls, costs, surroundings, batch_size, seq_len) for schedule in schedules]


def _planned(
    schedule: Schedule,
    calls: Sequence[tuple[LayerCall, Variant]],
    costs: LayerCosts,
    surroundings: Surroundings,
    batch_size: int,
    seq_len: int,
) -> Plan:
    assert schedule.total_steps is not None
    droppable = {
        call.name: {role.name: role.axis.size for role in variant.roles.found}
        for call, variant in calls
        if variant.residuals.droppable
    }

    def stage_plan(stage: Stage, start: int, stop: int, index: int | None = None) -> StagePlan:
        """The costs of a stage, of the schedule's if it has an index among them."""
        kept = schedule.layers_kept(stage, len(droppable))
        chances = {name: kept / len(droppable) for name in droppable}
        if schedule.copies_layers and index is not None:  # which layers run is known
            runs_each = layers_of_stage(schedule, index, list(droppable.values()))
            chances = dict(zip(droppable, map(float, runs_each), strict=True))
        known = set(chances.values()) <= {0.0, 1.0}
        each = []
        parts: dict[str, float] = {}
        units = {"heads": (0, 0), "neurons": (0, 0), "layers": (len(calls) - len(droppable) + kept, len(calls))}
        for call, variant in calls:
            counts = stage_counts(schedule, variant.roles, stage)
            inputs = surroundings.inputs[call.name]
            runs = chances.get(call.name, 1.0)
            each.append((costs.of(call.name, counts, inputs), runs))
            for part, number in costs.forward_parts(call.name, counts, inputs).items():
                parts[part] = parts.get(part, 0.0) + number * runs
            for role in variant.roles.found:
                some, of = units[role.fraction]
                units[role.fraction] = (some + dict(counts).get(role.name, role.axis.size), of + role.axis.size)
        at_work = [
            CallAtWork(call, variant.residuals.droppable and not known, cost.parameters)
            for (call, variant), (cost, runs) in zip(calls, each, strict=True)
            if runs > 0
        ]
        flops = sum(cost.flops * weight for cost, weight in each)
        return StagePlan(
            start=start,
            stop=stop,
            heads=stage.heads,
            neurons=stage.neurons,
            layers=stage.layers,
            flops_layers=flops,
            flops_model=flops + surroundings.cost.flops,
            parameters=parameters_at_work(at_work, kept) + sum(surroundings.cost.parameters.values()),
            activation_bytes=sum(cost.activation_bytes * weight for cost, weight in each),
            units=units,
            flops_forward=parts,
        )

    starts = [stage.start for stage in schedule.stages]
    stops = [*starts[1:], schedule.total_steps]
    stages = [stage_plan(*each, n) for n, each in enumerate(zip(schedule.stages, starts, stops, strict=True))]
    return Plan(
        batch_size=batch_size,
        seq_len=seq_len,
        stages=stages,
        whole=stage_plan(Stage(start=0), 0, schedule.total_steps),
        programs=sum(
            len({counts for stage in schedule.stages for counts in possible_counts(schedule, variant.roles, stage)})
            for variant in {id(variant): variant for _, variant in calls}.values()
        ),
    )
