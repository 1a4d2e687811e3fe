"""What a step has in force, and what those are told who follow the steps of a model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer

from estfx.programs import Counts
from estfx.runtime.mounted_layers import Drawn
from estfx.schedules import Schedule, Stage, UnitScores

__all__ = ["NO_STEP", "Follower", "StepChange", "StepState"]

log = logging.getLogger(__name__)
NO_STEP = (
    "the model is in training mode, but no step was set. Call model.set_step(step) before each optimizer step (with "
    "Trainer: callbacks=[EvolvingCallback()]), or model.eval() to run the whole model. A copy has steps of its own: "
    "call eval() on one that holds averaged weights, as torch's AveragedModel."
)


@dataclass(frozen=True)
class StepState:
    """What a step trains."""

    step: int
    stage_index: int  # from 0
    stage: Stage
    running: Mapping[str, bool]  # by layer
    drawn: Drawn
    counts: Mapping[str, Counts]  # how many units of each role a layer keeps, whole ones left out
    update_scale: float = 1.0  # by which the update of a layer that runs is multiplied

    def units(self) -> dict[str, dict[str, torch.Tensor]]:
        """The kept indices (int64, ascending) by layer that runs and by role."""
        return {
            name: {role: torch.from_numpy(units.copy()) for role, units in self.drawn[name].items()}
            for name, runs in self.running.items()
            if runs
        }


@dataclass(frozen=True)
class StepChange:
    """A call of `set_step`."""

    now: StepState
    before: StepState | None  # the same as `now`, if the step was in force already
    is_new_part: bool  # another stage has begun, or units were ranked anew
    in_training: bool  # the step before is the one that a forward pass was made in


class Follower:
    """Follows the steps of a model: it may act at four moments, and does nothing at those that it does not define."""

    watches_optimizers: bool = False  # whether it needs the last two of them

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self.invalidate: Callable[[], None] = lambda: None  # set by the runtime; to be called when draws have changed

    def twin(self) -> Self:
        """One for a copy of the model."""
        made = copy.copy(self)
        made._warned = set(self._warned)
        return made

    def schedule_is(self, schedule: Schedule) -> None:
        """The schedule, which was given in shares of a run, is known by its steps now."""

    def scores(self) -> UnitScores | None:
        """The scores by which draws rank units at present; None from all who know none."""
        return None

    def before_step(self, step: int, state: StepState | None, model: nn.Module, device: torch.device) -> bool:
        """Before another step than that of `state` is drawn. Returns whether the scores are others now."""
        return False

    def step_set(self, change: StepChange) -> None:
        """At the end of each `set_step`."""

    def before_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """Before a step of an optimizer, any in the process."""

    def after_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """After it."""

    def warn_once(self, message: str) -> None:
        """Logs a warning, the first time that it is given."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)
