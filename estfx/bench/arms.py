"""The models that are compared. All share the parameters of one, so that they fit beside each other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from estfx.bench.settings import BenchSettings
from estfx.graphs import tags
from estfx.programs import Counts, Variant, analysed, resolve, stage_counts
from estfx.schedules import Schedule, Stage, kept_count
from estfx.tracing import Decoder, flatten, trace
from estfx.transformation import transform

__all__ = ["Arm", "build_arms"]

STEPS = 1_000_000  # of each stage, more than are measured


@dataclass(frozen=True)
class Arm:
    """A model, what is done before each of its steps, and the stage whose FLOPs it does."""

    name: str
    model: Callable[..., Any]
    before: Callable[[int], None]
    stage: Stage


def _schedule_of(settings: BenchSettings) -> Schedule:
    """The paper's three stages, each long enough for what is measured."""
    keep = settings.keep
    stages = (
        Stage(start=0, heads=keep, neurons=keep, layers=keep),
        Stage(start=STEPS, heads=keep, neurons=keep),
        Stage(start=2 * STEPS),
    )
    return Schedule(stages=stages, total_steps=3 * STEPS)


def build_arms(model: nn.Module, example_inputs: dict[str, torch.Tensor], settings: BenchSettings) -> list[Arm]:
    """The arms that the settings ask for, in their order."""
    schedule = _schedule_of(settings)
    made = _Arms(model, example_inputs, settings, schedule)
    return [getattr(made, name)() for name in settings.arms]


def _nothing(number: int) -> None:
    pass


class _Arms:
    """A method for each arm, by its name."""

    def __init__(
        self, model: nn.Module, example_inputs: dict[str, torch.Tensor], settings: BenchSettings, schedule: Schedule
    ) -> None:
        self.original, self.settings, self.schedule = model, settings, schedule
        self.rng = np.random.default_rng(settings.seed)
        self.inputs = example_inputs
        self.decoder: Decoder = trace(model, example_inputs)
        self.variants: dict[str, Variant] = {n: analysed(traced) for n, traced in self.decoder.traced.items()}
        self._evolving: Any = None

    def twin(self) -> nn.Module:
        """The model again, with the same parameters."""
        shared = {id(t): t for t in (*self.original.parameters(), *self.original.buffers())}
        return copy.deepcopy(self.original, shared)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        paths = dict.fromkeys(info.call.path for info in self.decoder.infos.values())
        return {path: model.get_submodule(path) for path in paths}

    def compiled_by_layer(self) -> nn.Module:
        twin = self.twin()
        for layer in self.layers(twin).values():
            layer.compile(fullgraph=True)
        return twin

    # -- the original --------------------------------------------------------------------------------------------

    def eager(self) -> Arm:
        return Arm("eager", self.twin(), _nothing, Stage(start=0))

    def compiled(self) -> Arm:
        return Arm("compiled", torch.compile(self.twin()), _nothing, Stage(start=0))

    def compiled_layers(self) -> Arm:
        return Arm("compiled_layers", self.compiled_by_layer(), _nothing, Stage(start=0))

    # -- estfx ---------------------------------------------------------------------------------------------------

    def evolving(self, number: int) -> Arm:
        if self._evolving is None:
            self._evolving = transform(
                self.twin(), self.schedule, example_inputs=self.inputs, seed=self.settings.seed, verify=False
            )
        model, stage = self._evolving, self.schedule.stages[number - 1]
        return Arm(f"stage_{number}", model, lambda step: model.set_step(stage.start + step), stage)

    def stage_1(self) -> Arm:
        return self.evolving(1)

    def stage_2(self) -> Arm:
        return self.evolving(2)

    def stage_3(self) -> Arm:
        return self.evolving(3)

    # -- what else there is --------------------------------------------------------------------------------------

    def masked(self) -> Arm:
        """A mask on each weight that stage 2 narrows, drawn anew at every step."""
        twin = self.twin()
        compiled = {name: torch.compile(_masked_graph(v), fullgraph=True) for name, v in self.variants.items()}
        masked = []
        for info in self.decoder.infos.values():
            variant = self.variants[info.program]
            counts = stage_counts(self.schedule, variant.roles, self.schedule.stages[1])
            layer = twin.get_submodule(info.call.path)
            masked.append(_Masked(layer, variant, compiled[info.program], counts))
            _replace(twin, info.call.path, masked[-1])

        def draw(number: int) -> None:
            for layer in masked:
                layer.draw(self.rng)

        return Arm("masked", twin, draw, Stage(start=0))

    def layer_drop(self) -> Arm:
        twin = self.compiled_by_layer()
        droppable = [info for info in self.decoder.infos.values() if self.variants[info.program].residuals.droppable]
        drops = {}
        for info in droppable:
            layer = twin.get_submodule(info.call.path)
            drops[info.call.path] = drop = _Drop(layer, self.variants[info.program])
            _replace(twin, info.call.path, drop)
        kept = kept_count(len(drops), self.settings.keep) if drops else 0

        def draw(number: int) -> None:
            runs = set(self.rng.permutation(len(drops))[:kept].tolist())
            for position, drop in enumerate(drops.values()):
                drop.runs = position in runs

        return Arm("layer_drop", twin, draw, Stage(start=0, layers=self.settings.keep))

    def checkpointed(self) -> Arm:
        twin = self.compiled_by_layer()
        for path, layer in self.layers(twin).items():
            _replace(twin, path, _Checkpointed(layer))
        return Arm("checkpointed", twin, _nothing, Stage(start=0))


class _Around(nn.Module):
    """Stands in a layer's place; what is asked of it that it has not, such as a layer's type, the layer answers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _masked_graph(variant: Variant) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The whole layer, whose weights are multiplied by masks."""
    graph = variant.traced.graph.forward

    def run(
        inputs: list[torch.Tensor], weights: list[torch.Tensor], masks: list[list[torch.Tensor]]
    ) -> tuple[torch.Tensor, ...]:
        each = [reduce(torch.mul, own, weight) for weight, own in zip(weights, masks, strict=True)]
        result: tuple[torch.Tensor, ...] = graph(*inputs, *each)
        return result

    return run


class _Masked(_Around):
    """A layer whose weights are hidden in part, along each dimension that a stage would narrow."""

    def __init__(self, layer: nn.Module, variant: Variant, run: Callable[..., Any], counts: Counts) -> None:
        super().__init__(layer)
        self.variant, self.run, self.counts = variant, run, dict(counts)
        self.program = variant.program(counts, None)
        self.masks: dict[str, list[torch.Tensor]] = {gather.placeholder: [] for gather in self.program.gathers}
        paths = [path for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
        self.of_weight: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
        for path, dim, placeholder in tags.get(self.program.graph, tags.Indices).weights:
            weight = resolve(layer, path)
            mask = weight.new_ones([size if d == dim else 1 for d, size in enumerate(weight.shape)])
            self.masks[placeholder].append(mask)
            self.of_weight[path].append(mask)

    def draw(self, rng: np.random.Generator) -> None:
        """Hides all but the kept units of each role, other ones than before."""
        sizes = {role.name: role.axis.size for role in self.variant.roles.found if role.name in self.counts}
        drawn = {role: np.sort(rng.permutation(size)[: self.counts[role]])[None] for role, size in sizes.items()}
        for gather, index in zip(self.program.gathers, self.program.indices(drawn), strict=True):
            for mask in self.masks[gather.placeholder]:
                mask.zero_().view(-1)[torch.from_numpy(index[0].copy()).to(mask.device)] = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, _ = flatten(args, kwargs)
        inputs = [leaves[i] for i in self.variant.traced.input_leaves]
        weights = [resolve(self.layer, path) for path in self.of_weight]
        values = self.run(inputs, weights, list(self.of_weight.values()))
        return self.variant.traced.pack(values, self.layer, args, kwargs)


class _Drop(_Around):
    def __init__(self, layer: nn.Module, variant: Variant) -> None:
        super().__init__(layer)
        self.variant, self.runs = variant, True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.runs:
            return self.layer(*args, **kwargs)
        return self.variant.passed_over(flatten(args, kwargs)[0])


class _Checkpointed(_Around):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = module
