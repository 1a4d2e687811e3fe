"""Experiments on the loss: a YAML names a run, the arms that differ from it, and the seeds.

An arm changes settings of `estfx train`. With `equal_flops: OTHER` it spends as many FLOPs of the whole model as
another arm: one that always trains the whole takes fewer steps (its learning rate then decays over those), one that
grows has its boundaries moved, and one with a single stage keeps a constant part, whose size is solved for. An arm with
`stopped: OTHER` is that arm's run, looked at when it has spent as much as the arm named by `equal_flops`. One with
`same_as: EXPERIMENT ARM` is not run: its runs are those of another experiment.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

import estfx
from estfx.costs import Plan, schedule_saving
from estfx.schedules import Schedule, Stage
from estfx.settings import Settings, SettingsError, nearest
from estfx.training import RunConfig, build_model

__all__ = ["ORDER", "ROOT", "Arm", "Experiment", "Plans", "Run", "Solved", "found"]

ROOT = Path(__file__).parents[2]
UNITS = ("layers", "heads", "neurons")
RUNS, RESULTS = ROOT / "runs" / "quality", ROOT / "benchmarks" / "results" / "quality"
# what names of experiments begin with, in the order of the record
ORDER = (
    *("tuned", "base", "mini", "small", "medium", "large", "tiny", "deep", "long"),
    *("init", "steps", "rates", "variants", "ablations", "search", "bpe"),
)


class Arm(Settings):
    """How one arm differs from the experiment's run."""

    what: str  # in a few words, for the tables
    schedule: Mapping[str, Any] = Field(default_factory=dict)  # settings of estfx train's `schedule`
    train: Mapping[str, Any] = Field(default_factory=dict)  # and of its `train`
    equal_flops: str | None = None  # the arm that it spends as much as
    stopped: str | None = None  # the arm of which it is the beginning
    same_as: str | None = None  # the experiment and its arm, with a space between, whose runs are this arm's
    seeds: Annotated[Sequence[int], AfterValidator(tuple)] | None = None  # if not those of the experiment

    @model_validator(mode="after")
    def _names_what_it_takes(self) -> Self:
        if self.same_as is not None and len(self.same_as.split()) != 2:
            raise ValueError(f"same_as takes an experiment and its arm, as in `mini-gpt2 est`; it is {self.same_as!r}.")
        if self.stopped is not None and (self.equal_flops is None or self.schedule or self.train):
            raise ValueError("an arm that is another one stopped needs equal_flops, and changes nothing else.")
        return self


class Experiment(Settings):
    """What is compared with what."""

    title: str
    run: Mapping[str, Any]  # settings of estfx train that all arms share
    arms: Mapping[str, Arm]
    main: bool = False  # in the table of all sizes
    beside: str | None = None  # the experiment with the same run whose arms stand in the table too
    seeds: Annotated[Sequence[int], AfterValidator(tuple)] = (0, 1, 2)
    held_out_blocks: Annotated[int, Field(ge=1)] = 1024  # for the loss after training, spread over the held-out text
    task_items: Annotated[int, Field(ge=0)] = 400  # of each likelihood-ranking task

    @model_validator(mode="after")
    def _arms_are_there(self) -> Self:
        for name, arm in self.arms.items():
            for other in (arm.equal_flops, arm.stopped):
                if other is not None and other not in self.arms:
                    raise ValueError(f"arm {name} speaks of an arm {other!r}; {nearest(other, self.arms)}")
                if other is not None and (self.arms[other].equal_flops or self.arms[other].stopped):
                    raise ValueError(f"arm {name} speaks of {other}, which itself depends on an arm.")
        return self


class Solved(Settings):
    """An arm of which nothing is left to be found out."""

    config: RunConfig
    stops: Mapping[str, int]  # arms that are its beginning, and after how many steps they end


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    experiment: str  # the YAML's stem
    arm: str
    seed: int

    @property
    def folder(self) -> Path:
        return RUNS / self.experiment / f"{self.arm}-{self.seed}"

    @property
    def result(self) -> Path:
        return RESULTS / self.experiment / f"{self.arm}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.experiment} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Plans:
    """An experiment's arms with everything solved for."""

    name: str
    experiment: Experiment

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(path.stem, Experiment.from_yaml(path))

    def runs(self) -> Iterator[Run]:
        """Every run there is to be done, all arms of a seed before the next seed."""
        seeds = dict.fromkeys(s for arm in self.experiment.arms.values() for s in arm.seeds or self.experiment.seeds)
        for seed in seeds:
            for name, arm in self.experiment.arms.items():
                own = arm.stopped is None and arm.same_as is None
                if own and seed in (arm.seeds or self.experiment.seeds):
                    yield Run(self.name, name, seed)

    def stops(self, arm: str) -> dict[str, int]:
        """The arms that are the beginning of this one, and after how many of its steps."""
        return {
            name: self._steps_for(arm, other.equal_flops)
            for name, other in self.experiment.arms.items()
            if other.stopped == arm and other.equal_flops is not None
        }

    def config(self, arm: str) -> RunConfig:
        """An arm's run, with nothing left to be solved for."""
        base = self.before_solving(arm)
        equal = self.experiment.arms[arm].equal_flops
        if equal is None:
            return base
        schedule = base.schedule.build(base.train.total_steps)
        if schedule.stages == (Stage(start=0),):
            steps = self._steps_for(arm, equal)
            return _changed(base, {"train": {"total_steps": steps}})
        found = self._moved(schedule, equal) if len(schedule.stages) > 1 else [self._constant(equal)]
        stages = [stage.model_dump(mode="json") for stage in found]
        return _changed(base, {"schedule": {"stages": stages, "preset": None, "keep": None}})

    def solved(self, arm: str) -> Solved:
        """An arm, and when it ends as other arms. Solved once for each text of the YAML."""
        key = hashlib.blake2b(f"{arm} {self.experiment.model_dump_json()}".encode(), digest_size=8).hexdigest()
        path = RUNS / self.name / f"{arm}-{key}.yaml"
        if not path.exists():
            config = self.config(arm)
            path.parent.mkdir(parents=True, exist_ok=True)
            Solved(config=config, stops=self.stops(arm)).to_yaml(path)
        return Solved.from_yaml(path)

    def before_solving(self, arm: str) -> RunConfig:
        """An arm's run before anything is solved for."""
        own = self.experiment.arms[arm]
        both = _merged(self.experiment.run, {"schedule": own.schedule, "train": own.train})
        return RunConfig.from_mapping(both).resolved()

    def _plan_of(self, schedule: Schedule) -> Plan:
        return _planned(self.before_solving(next(iter(self.experiment.arms))), schedule)

    def _spent(self, arm: str) -> float:
        """The FLOPs of the whole model over an arm's run."""
        config = self.before_solving(arm)
        plan = self._plan_of(config.schedule.build(config.train.total_steps))
        return sum(stage.steps * stage.flops_model for stage in plan.stages)

    def _steps_for(self, arm: str, equal: str) -> int:
        """After how many steps the one that trains the whole has spent as much as the other in all."""
        total = self.before_solving(arm).train.total_steps
        whole = self._plan_of(Schedule(stages=[Stage(start=0)], total_steps=total)).whole
        return min(total, round(self._spent(equal) / whole.flops_model))

    def _moved(self, schedule: Schedule, equal: str) -> Sequence[Stage]:
        """The stages with boundaries at which they cost as much as another arm's."""
        plan = self._plan_of(schedule)
        target = 1 - self._spent(equal) / (plan.whole.flops_model * plan.whole.steps)
        return schedule_saving(plan, schedule, target).stages

    def _constant(self, equal: str) -> Stage:
        """The part that costs as much over the whole run as another arm's growing one.

        FLOPs are linear in the layers that run, and in the heads and the neurons of each. Layers and heads are few:
        for every number of both, neurons make up the difference; the most even of these parts is taken.
        """
        total = self.before_solving(equal).train.total_steps
        wanted = self._spent(equal) / total

        def looked_at(stage: Stage) -> tuple[float, float, float, float]:
            """Its FLOPs a step, and the fractions that it really keeps."""
            found = self._plan_of(Schedule(stages=[stage], total_steps=total)).stages[0]
            layers, heads, neurons = (found.units[name][0] / found.units[name][1] for name in UNITS)
            return found.flops_model, layers, heads, neurons

        whole, *_ = looked_at(Stage(start=0))
        rest, some_layers, *_ = looked_at(Stage(start=0, layers=0.5))
        layers_cost = (whole - rest) / (1 - some_layers)
        fewer, _, some_heads, _ = looked_at(Stage(start=0, heads=0.5))
        heads_cost = (whole - fewer) / (1 - some_heads)
        fewer, _, _, some_neurons = looked_at(Stage(start=0, neurons=0.5))
        neurons_cost = (whole - fewer) / (1 - some_neurons)
        outside, fixed = whole - layers_cost, layers_cost - heads_cost - neurons_cost
        units = self._plan_of(Schedule(stages=[Stage(start=0)], total_steps=total)).stages[0].units
        num_layers = units["layers"][1]
        num_heads = units["heads"][1] // num_layers
        parts = []
        for layers in (Fraction(k, num_layers) for k in range(1, num_layers + 1)):
            for heads in (Fraction(k, num_heads) for k in range(1, num_heads + 1)):
                neurons = ((wanted - outside) / float(layers) - fixed - float(heads) * heads_cost) / neurons_cost
                if 0 < neurons <= 1:
                    parts.append((float(layers), float(heads), neurons))
        if not parts:
            raise SettingsError(
                f"no constant part of {num_layers} layers and {num_heads} heads costs what {equal} does."
            )
        layers, heads, neurons = min(parts, key=lambda part: max(part) - min(part))
        return Stage(start=0, layers=layers, heads=heads, neurons=neurons)


@functools.cache
def _stage_costs(model: str, heads: float, neurons: float, layers: float, multiple: int, rows: int, length: int) -> Any:
    config = RunConfig.from_mapping({"model": json.loads(model)})
    built = build_model(config.model.name, config.model.config)
    stage = Stage(start=0, heads=heads, neurons=neurons, layers=layers)
    schedule = Schedule(stages=[stage], total_steps=1, neurons_multiple_of=multiple)
    return estfx.plan(built.model, schedule, batch_size=rows, seq_len=length)


def _planned(config: RunConfig, schedule: Schedule) -> Plan:
    """A schedule's plan for the model of a run. What a stage costs is looked at once."""
    rows = config.train.batch_size * config.train.accumulation
    assert schedule.total_steps is not None
    each = [
        _stage_costs(
            config.model.model_dump_json(),
            stage.heads,
            stage.neurons,
            stage.layers,
            schedule.neurons_multiple_of,
            rows,
            config.data.seq_len,
        )
        for stage in schedule.stages
    ]
    starts = [stage.start for stage in schedule.stages]
    places = zip(each, starts, [*starts[1:], schedule.total_steps], strict=True)
    stages = [one.stages[0].model_copy(update={"start": start, "stop": stop}) for one, start, stop in places]
    whole = each[0].whole.model_copy(update={"stop": schedule.total_steps})
    return each[0].model_copy(update={"stages": stages, "whole": whole})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, in which sections of `over` change single values."""
    merged = dict(base)
    for key, value in over.items():
        inside = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if inside else value
    return merged


def _changed(config: RunConfig, over: Mapping[str, Any]) -> RunConfig:
    return RunConfig.from_mapping(_merged(config.model_dump(mode="json"), over))


def found(name: str) -> Path:
    """The YAML of an experiment, by its path or its name. Raises SettingsError."""
    folder = Path(__file__).parent / "experiments"
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        names = [each.stem for each in folder.glob("*.yaml")]
        raise SettingsError(f"there is no experiment {name!r}; {nearest(name, names)}")
    return path
