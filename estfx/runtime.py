"""Which subnetwork is in force, and which programs and indices the layers run with."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from estfx import tags
from estfx.agreement import Agreement
from estfx.ahead import Ahead
from estfx.compilation import Compiler
from estfx.copied_layers import CopiedLayers
from estfx.errors import EstfxError
from estfx.idle_units import IdleUnits
from estfx.layer_kind import Kind
from estfx.layer_names import LayerPatterns
from estfx.made_with import drawn_layers, drawn_of
from estfx.narrowed_parameters import narrowed_parameters
from estfx.programs import Counts, Program, Variant
from estfx.report import Report
from estfx.schedule import Schedule
from estfx.selection import Selection
from estfx.stage import Stage
from estfx.step_draw import StepDraw, draw_step, units_kept, widths_of_layers
from estfx.subnetwork import Subnetwork

__all__ = ["Runtime", "possible_counts", "stage_counts"]

log = logging.getLogger(__name__)
ALIGNMENT = 8  # index inputs start at multiples of 64 bytes in the one buffer that travels to the device


def stage_counts(schedule: Schedule, roles: tags.Roles, stage: Stage) -> Counts:
    """How many units of each role a stage keeps, whole ones left out."""
    counts = ((role, units_kept(schedule, stage, role.name, role.axis.size)) for role in roles.found)
    return tuple(sorted((role.name, count) for role, count in counts if count < role.axis.size))


def possible_counts(schedule: Schedule, roles: tags.Roles, stage: Stage) -> set[Counts]:
    """How many units of each role layers may keep in a stage, which differs if layers are ranked together."""
    names = [role.name for role in roles.found]
    sizes = {role.name: role.axis.size for role in roles.found}
    each = product(*(widths_of_layers(schedule, stage, name, sizes[name]) for name in names))
    return {tuple(sorted((n, w) for n, w in zip(names, widths, strict=True) if w < sizes[n])) for widths in each}


@dataclass
class Runtime:
    """The state of an evolving model. What depends on the step is a pure function of (schedule, seed, step)."""

    schedule: Schedule
    seed: int
    report: Report
    layers: dict[str, Kind]  # by layer name, in the order of the calls
    compiler: Compiler | None
    paths: Mapping[str, str]  # by layer name its module's: two for a module that is called twice
    named: LayerPatterns | None = None  # the layers as `transform` was told them
    fuses_loss: bool = False
    agreement: Agreement = field(default_factory=Agreement)
    step: int | None = None
    idle: bool = False  # while the model itself is being looked at
    stage_index: int = 0
    running: dict[str, bool] = field(default_factory=dict)
    drawn: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # layer → role → units
    _indices: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)
    _in_forward: bool = False
    _forward_step: int | None = None  # of the last forward pass
    discards_caches: bool = False  # layers run without a KV cache that the model itself made
    _calls: dict[str, int] = field(default_factory=dict)  # made of each layer's module in this forward
    _layer_counts: dict[str, Counts] = field(default_factory=dict)  # of the step; asked at every call

    def __post_init__(self) -> None:
        self.drawn_layers = drawn_layers(drawn_of(self), self.paths)
        self._draws = Ahead(self._draw)
        self.selection = Selection(self)
        self.idle_units = IdleUnits(self)
        self.copied_layers = CopiedLayers(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        """A copy with a step of its own; schedule, report, graphs and compiled programs are shared."""
        twin = copy.copy(self)
        twin.running, twin.drawn, twin._indices = dict(self.running), dict(self.drawn), dict(self._indices)
        twin._warned, twin._calls, twin.agreement = set(self._warned), dict(self._calls), copy.copy(self.agreement)
        twin._draws = Ahead(twin._draw)
        twin.selection = self.selection.twin(twin)
        twin.idle_units = IdleUnits(twin)
        twin.copied_layers = CopiedLayers(twin)
        memo[id(self)] = twin
        return twin

    # -- the step ---------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        return self.schedule.stages[self.stage_index]

    @property
    def update_scale(self) -> float:
        """By what a running layer's update of the stream is multiplied, to make up for the layers that are skipped."""
        if self.schedule.skipped_layers == "inverse_keep" and self.stage.layers < 1:
            return 1.0 / self.stage.layers
        return 1.0

    def set_step(self, step: int, device: torch.device, model: nn.Module | None = None) -> bool:
        """Puts a step in force. Returns whether a policy ranked units anew for it, which learns from the model."""
        self.schedule.stage_at(step)  # or it is no step
        step = int(step)
        if step == self.step:
            return False
        ranked = model is not None and self.selection.before(step, model, device)
        if ranked:
            self._draws.forget()
        draw = self._draws.of(step)
        if step - 1 == self.step == self._forward_step:  # in the midst of training
            self.copied_layers.warn_if_lost(draw.running, step)
        self.step, self.stage_index, self.running, self.drawn = step, draw.stage_index, draw.running, draw.units
        self._indices, self._calls, self._layer_counts = {}, {}, {}
        self._send(device)
        return ranked

    def _draw(self, step: int) -> StepDraw:
        return draw_step(self.schedule, self.seed, self.drawn_layers, step, self.selection.scores())

    def forget_step(self) -> None:
        """No step is in force any more; the next one is drawn anew."""
        self.step = None
        self._draws.forget()

    def run_all(self, drawn: dict[str, dict[str, np.ndarray]]) -> None:
        """Has every layer run with these units, by layer and role, whatever was drawn for the step in force."""
        self.running, self.drawn = dict.fromkeys(self.layers, True), drawn
        self._indices, self._layer_counts = {}, {}

    def widths_of_stage(self) -> Iterator[dict[str, dict[str, np.ndarray]]]:
        """Units for all layers, once in each of the widths that they may have in the stage in force."""
        if self.schedule.ranking != "global":
            yield self.drawn
            return
        roles = {(role, size) for layer in self.drawn_layers.values() for role, size in layer.sizes.items()}
        choices = {
            (role, size): widths_of_layers(self.schedule, self.stage, role, size) for role, size in sorted(roles)
        }
        for each in product(*choices.values()):
            widths = dict(zip(choices, each, strict=True))
            yield {
                name: {role: np.arange(widths[role, size]) for role, size in layer.sizes.items()}
                for name, layer in self.drawn_layers.items()
            }

    def in_force(self) -> tuple[Any, ...]:
        """The step and what was drawn for it, to be put in force again."""
        return self.step, self.stage_index, self.running, self.drawn, self._indices

    def put_in_force(self, before: tuple[Any, ...]) -> None:
        self.step, self.stage_index, self.running, self.drawn, self._indices = before
        self._layer_counts = {}

    def counts(self, layer: str) -> Counts:
        """How many units of each role a layer keeps at the step in force, whole ones left out."""
        if layer not in self._layer_counts:
            drawn, roles = self.drawn[layer], self.layers[layer].first.roles.found
            kept = ((role.name, len(drawn[role.name])) for role in roles if len(drawn[role.name]) < role.axis.size)
            self._layer_counts[layer] = tuple(sorted(kept))
        return self._layer_counts[layer]

    # -- what the mounts ask ----------------------------------------------------------------------

    def require_step(self) -> None:
        if self.step is None:
            raise EstfxError(
                "the model is in training mode, but no step was set. Call model.set_step(step) before each optimizer "
                "step (with Trainer: callbacks=[EvolvingCallback()]), or model.eval() to run the whole model."
            )

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
        self.require_step()
        made = self._calls.get(path, 0)
        if made >= known and not self._in_forward:
            made = 0  # something calls a part of the model, so nobody said that a new forward begins
        if made >= known and not all(self.running.values()):
            raise EstfxError(
                f"layer `{path}` is called {made + 1} times in one forward, but on the example inputs it was called "
                f"{known} times, and which of its calls are skipped was drawn for those. Pass example_inputs to "
                "transform that look like the training batches, or use a schedule that skips no layers."
            )
        self._calls[path] = made + 1
        self._forward_step = self.step
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
        self.require_step()
        return self.running[name]

    def program(self, layer: str, variant: Variant) -> Program:
        self.require_step()
        return variant.program(self.counts(layer), self.compiler)

    def indices(self, name: str, program: Program, device: torch.device) -> list[torch.Tensor]:
        key = (name, id(program))
        if key not in self._indices:  # a program made since the step was set
            drawn = {role: units[None] for role, units in self.drawn[name].items()}
            self._indices[key] = [torch.from_numpy(i[0].copy()) for i in program.indices(drawn)]
        if any(index.device != device for index in self._indices[key]):  # or a layer on another device
            self._indices[key] = [index.to(device) for index in self._indices[key]]
        return self._indices[key]

    def _send(self, device: torch.device) -> None:
        """All indices of the step for all signatures that are known, in one copy to the device."""
        parts: list[np.ndarray] = []
        places: list[tuple[tuple[str, int], int, int]] = []
        position = 0
        for kind, counts, names in self._alike():
            variants = {id(variant): variant for variant in kind.all_variants()}  # one may serve several signatures
            programs = [variant.program(counts, self.compiler) for variant in variants.values()]
            for program in programs:
                if not program.gathers or not names:
                    continue
                roles = [role for role, _ in program.units]
                drawn = {role: np.stack([self.drawn[n][role] for n in names]) for role in roles}
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

    def _alike(self) -> Iterator[tuple[Kind, Counts, list[str]]]:
        """For each kind and number of units kept, the layers that run."""
        groups: dict[tuple[int, Counts], tuple[Kind, list[str]]] = {}
        for name, kind in self.layers.items():
            _, running = groups.setdefault((id(kind), self.counts(name)), (kind, []))
            if self.running[name]:
                running.append(name)
        for (_, counts), (kind, running) in groups.items():
            yield kind, counts, running

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    # -- what users ask ---------------------------------------------------------------------------

    def subnetwork(self, model: nn.Module) -> Subnetwork:
        self.require_step()
        assert self.step is not None
        units = {
            name: {role: torch.from_numpy(units.copy()) for role, units in self.drawn[name].items()}
            for name, runs in self.running.items()
            if runs
        }
        return Subnetwork(self.step, dict(self.running), units, lambda: narrowed_parameters(self, model, units))
