"""Which subnetwork is in force, and which programs and indices the layers run with."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from estfx.errors import EstfxError
from estfx.programs import Compiler, Counts, Kind, Program, Variant
from estfx.report import Report
from estfx.runtime.background_draws import BackgroundDraws
from estfx.runtime.follower import NO_STEP, Follower, StepChange, StepState
from estfx.runtime.mounted_layers import Drawn, MountedLayers
from estfx.runtime.narrowed_parameters import narrowed_parameters
from estfx.schedules import Schedule, Stage, StepDraw, Subnetwork, draw_step
from estfx.stand_ins import MadeBy
from estfx.tracing import LayerPatterns, Surroundings

__all__ = ["Runtime"]

log = logging.getLogger(__name__)
ALIGNMENT = 8  # index inputs start at multiples of 64 bytes in the one buffer that travels to the device
F = TypeVar("F", bound=Follower)


@dataclass
class Runtime:
    """The state of an evolving model. What depends on the step is a pure function of (schedule, seed, step)."""

    schedule: Schedule
    seed: int
    report: Report
    layers: MountedLayers
    followers: tuple[Follower, ...] = ()  # told of every step, in this order
    named: LayerPatterns | None = None  # the layers as `transform` was told them
    fuses_loss: bool = False
    made_by: MadeBy | None = None
    filled_in: bool = False  # the schedule's number of steps, by a trainer and not by the user
    state: StepState | None = None  # of the step in force
    stage_index: int = 0  # of the last step that was in force
    idle: bool = False  # while the model itself is being looked at
    discards_caches: bool = False  # layers run without a KV cache that the model itself made
    surroundings: Surroundings | None = None  # what the layers read around them; None until it is looked at
    before_copy: Surroundings | None = None  # that of the model that this one is a copy of
    step_in_eval_mode: int | None = None  # the last step of which a forward pass with gradients was made in eval mode
    _indices: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)
    _in_forward: bool = False
    _forward_step: int | None = None  # of the last forward pass
    _calls: dict[str, int] = field(default_factory=dict)  # made of each layer's module in this forward

    def __post_init__(self) -> None:
        self._draws = BackgroundDraws(self._draw)
        for follower in self.followers:
            follower.invalidate = self.forget_step

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        """A copy with a step of its own; schedule, report, graphs and compiled programs are shared."""
        twin = copy.copy(self)
        twin._indices, twin._warned, twin._calls = dict(self._indices), set(self._warned), dict(self._calls)
        twin.followers = tuple(follower.twin() for follower in self.followers)
        twin.before_copy, twin.surroundings = self.surroundings, None
        twin.__post_init__()
        memo[id(self)] = twin
        return twin

    def follower(self, kind: type[F]) -> F:
        """The follower of a class."""
        return next(follower for follower in self.followers if isinstance(follower, kind))

    # -- the step ---------------------------------------------------------------------------------

    @property
    def step(self) -> int | None:
        """The step in force."""
        return None if self.state is None else self.state.step

    @property
    def stage(self) -> Stage:
        """The stage in force; the first one before a step is set."""
        return self.schedule.stages[self.stage_index]

    @property
    def compiler(self) -> Compiler | None:
        """What compiles the programs, and what is compiled of the model around its layers."""
        return self.layers.compiler

    @property
    def update_scale(self) -> float:
        """By what a running layer's update of the stream is multiplied, to make up for the layers that are skipped."""
        return self.require_step().update_scale

    def _update_scale(self, running: Mapping[str, bool]) -> float:
        """All layers that could be skipped over those of them that run."""
        if self.schedule.skipped_layers != "inverse_keep":
            return 1.0
        own = [running[name] for name, layer in self.layers.drawn.items() if layer.droppable]
        return len(own) / sum(own) if any(own) else 1.0

    def set_step(self, step: int, device: torch.device, model: nn.Module) -> None:
        """Puts a step in force, and tells the followers of it before and after. Another draw is made only for another
        step than that in force.
        """
        self.schedule.stage_at(step)  # or it is no step
        step, before, stage = int(step), self.state, self.stage_index
        if before is not None and before.step == step:
            change = StepChange(before, before, is_new_part=False, in_training=False)
        else:
            others = [follower.before_step(step, before, model, device) for follower in self.followers]
            if ranked := any(others):
                self._draws.forget()
            in_training = before is not None and step - 1 == before.step == self._forward_step
            now = self.take_step(step, device)
            change = StepChange(now, before, ranked or self.stage_index != stage, in_training)
        for follower in self.followers:
            follower.step_set(change)

    def take_step(self, step: int, device: torch.device) -> StepState:
        """Draws a step and puts it in force, whatever was; the followers are not told."""
        draw = self._draws.of(step)
        stage, counts = self.schedule.stages[draw.stage_index], self.layers.counts(draw.units)
        scale = self._update_scale(draw.running)
        state = StepState(step, draw.stage_index, stage, draw.running, draw.units, counts, scale)
        self.state, self.stage_index, self._indices, self._calls = state, draw.stage_index, {}, {}
        self._send(device)
        return state

    def _draw(self, step: int) -> StepDraw:
        scores = next((found for follower in self.followers if (found := follower.scores()) is not None), None)
        return draw_step(self.schedule, self.seed, self.layers.drawn, step, scores)

    def forget_step(self) -> None:
        """No step is in force any more; the next one is drawn anew."""
        self.state = None
        self._draws.forget()

    def run_all(self, drawn: Drawn) -> None:
        """Has every layer run with these units, by layer and role, whatever was drawn for the step in force."""
        state = self.require_step()
        running = dict.fromkeys(self.layers.kinds, True)
        self.state = replace(state, running=running, drawn=drawn, counts=self.layers.counts(drawn), update_scale=1.0)
        self._indices = {}

    def in_force(self) -> tuple[Any, ...]:
        """The step and what was drawn for it, to be put in force again."""
        return self.state, self.stage_index, self._indices, self._forward_step

    def put_in_force(self, before: tuple[Any, ...]) -> None:
        """Puts in force what `in_force` gave."""
        self.state, self.stage_index, self._indices, self._forward_step = before

    def before_optimizer(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Tells the followers that an optimizer is about to make a step."""
        if (state := self.state) is not None:
            for follower in self.followers:
                follower.before_optimizer(state, model, optimizer)

    def after_optimizer(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Tells them that it has made it."""
        if (state := self.state) is not None:
            for follower in self.followers:
                follower.after_optimizer(state, model, optimizer)

    # -- what the mounts ask ----------------------------------------------------------------------

    def require_step(self) -> StepState:
        """The step in force. Raises EstfxError if there is none."""
        if self.state is None:
            raise EstfxError(NO_STEP)
        return self.state

    @property
    def in_forward(self) -> bool:
        """Whether the model itself was called, and not a part of it."""
        return self._in_forward

    @contextmanager
    def one_forward(self, discards_caches: bool = False) -> Iterator[None]:
        """While the model runs, each layer's module counts its calls from one.

        `discards_caches`: nobody asked for a KV cache, so that one which the model makes is never read.
        """
        self._calls, self._in_forward, self.discards_caches = {}, True, discards_caches
        try:
            yield
        finally:
            self._in_forward = self.discards_caches = False

    def next_call(self, path: str, known: int) -> int:
        """Which call of a module this is, from 0; `known` is how often it was called on the example inputs.

        Raises EstfxError for a further one while layers are skipped, for which none was drawn.
        """
        state = self.require_step()
        made = self._calls.get(path, 0)
        if made >= known and not self._in_forward:
            made = 0  # something calls a part of the model, so nobody said that a new forward begins
        if made >= known and not all(state.running.values()):
            raise EstfxError(
                f"layer `{path}` is called {made + 1} times in one forward, but on the example inputs it was called "
                f"{known} times, and which of its calls are skipped was drawn for those. Pass example_inputs to "
                "transform that look like the training batches, or use a schedule that skips no layers."
            )
        self._calls[path] = made + 1
        self._forward_step = state.step
        return min(made, known - 1)

    def require_step_of_forward(self) -> None:
        """Raises EstfxError if another step was set since the forward pass that is now computed again."""
        if self.step != self._forward_step:
            raise EstfxError(
                f"set_step({self.step}) was called between a forward pass of step {self._forward_step} and its "
                "backward pass, in which activation checkpointing computes layers again: it would be with another "
                "subnetwork. Call set_step before the forward pass, once per optimizer step."
            )

    def runs(self, name: str) -> bool:
        """Whether a layer runs in the step in force."""
        return self.require_step().running[name]

    def program(self, layer: str, variant: Variant) -> Program:
        """The program of a layer in the step in force."""
        return self.layers.program(variant, self.require_step().counts[layer])

    def indices(self, name: str, program: Program, device: torch.device) -> list[torch.Tensor]:
        """The indices of a layer's units for a program."""
        key = (name, id(program))
        if key not in self._indices:  # a program made since the step was set
            drawn = {role: units[None] for role, units in self.require_step().drawn[name].items()}
            self._indices[key] = [torch.from_numpy(i[0].copy()) for i in program.indices(drawn)]
        self._indices[key] = [index.to(device) for index in self._indices[key]]  # or a layer on another device
        return self._indices[key]

    def _send(self, device: torch.device) -> None:
        """All indices of the step for all signatures that are known, in one copy to the device."""
        state = self.require_step()
        parts: list[np.ndarray] = []
        places: list[tuple[tuple[str, int], int, int]] = []
        position = 0
        for kind, counts, names in self._alike(state):
            variants = {id(variant): variant for variant in kind.all_variants()}  # one may serve several signatures
            programs = [self.layers.program(variant, counts) for variant in variants.values()]
            for program in programs:
                if not program.gathers or not names:
                    continue
                roles = [role for role, _ in program.units]
                drawn = {role: np.stack([state.drawn[n][role] for n in names]) for role in roles}
                for index_LK in program.indices(drawn):
                    length = index_LK.shape[-1]
                    stride = -(-length // ALIGNMENT) * ALIGNMENT
                    padded = np.zeros((len(names), stride), dtype=np.int64)
                    padded[:, :length] = index_LK
                    parts.append(padded.ravel())
                    for row, name in enumerate(names):
                        places.append(((name, id(program)), position + row * stride, length))
                    position += padded.size
        if not parts:
            return
        buffer = torch.from_numpy(np.concatenate(parts))
        if device.type == "cuda":
            buffer = buffer.pin_memory().to(device, non_blocking=True)
        for key, start, length in places:
            self._indices.setdefault(key, []).append(buffer[start : start + length])

    def _alike(self, state: StepState) -> Iterator[tuple[Kind, Counts, list[str]]]:
        """For each kind and number of units kept, the layers that run."""
        groups: dict[tuple[int, Counts], tuple[Kind, list[str]]] = {}
        for name, kind in self.layers.kinds.items():
            _, running = groups.setdefault((id(kind), state.counts[name]), (kind, []))
            if state.running[name]:
                running.append(name)
        for (_, counts), (kind, running) in groups.items():
            yield kind, counts, running

    def warn_once(self, message: str) -> None:
        """Logs a warning, the first time that it is given."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    # -- what users ask ---------------------------------------------------------------------------

    def subnetwork(self, model: nn.Module) -> Subnetwork:
        """What is kept at the step in force."""
        state = self.require_step()
        narrowed = partial(narrowed_parameters, self.layers, self.layers.variants(model), state, model, by_layer=True)
        return Subnetwork(state.step, dict(state.running), state.units(), narrowed, self.schedule.scales)
