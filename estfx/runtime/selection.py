"""What a selection policy that ranks units has learnt of them: their scores, a part of the state of a training run.

Before each step of an optimizer |weight · gradient| is summed over the weights of every unit that is at work; the
running mean of these sums over the steps that trained a unit is its score. Gradients are looked at where optimizers
get them: accumulated, averaged over ranks, clipped. So it works in any loop, with any optimizer of `torch.optim`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from estfx.errors import EstfxError
from estfx.programs import Variant, resolve
from estfx.runtime.follower import Follower, StepChange, StepState
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.optimizer_hooks import parameters_held
from estfx.runtime.unit_weights import Sums, UnitWeight, unit_weights
from estfx.schedules import SCORES, Schedule, Scores, UnitScores

__all__ = ["Selection"]

DECAY = 0.99  # of the running mean; a unit that was at work in fewer steps has their plain mean


class Selection(Follower):
    """The scores of a model's units, and those by which they are ranked at present.

    `state_dict` and `load_state_dict` are what checkpoints need: give the selection to
    `accelerator.register_for_checkpointing`, or keep its dict beside the model's. The state of a policy that ranks
    nothing is empty.
    """

    def __init__(self, schedule: Schedule, layers: MountedLayers) -> None:
        super().__init__()
        self._schedule, self._layers = schedule, layers
        self._measure: Scores | None = SCORES.get(schedule.policy)
        self.watches_optimizers = self._measure == "weighted_gradient"  # it must see the gradients that one gets
        self._state: StepState | None = None  # of the step in force, or of the last that was
        self._layout: dict[tuple[str, str], int] = {}  # units by path of the module, and role
        for name, kind in layers.kinds.items() if self._measure is not None else ():
            self._layout |= {(layers.paths[name], role.name): role.axis.size for role in kind.first.roles.found}
        ends = np.cumsum([0, *self._layout.values()])
        self._starts = dict(zip(self._layout, ends.tolist(), strict=False))  # where the units of each lie in `_N`
        self._mean_N = torch.zeros(int(ends[-1]))
        self._count_N = torch.zeros_like(self._mean_N)  # steps that trained a unit
        self._pending_N: torch.Tensor | None = None  # of the step in force
        self._scores: torch.Tensor | None = None  # by which units are ranked at present, on the CPU
        self._ranked_at = -1  # the step for which they were
        self._weights: dict[int, tuple[Variant, list[UnitWeight]]] = {}

    def schedule_is(self, schedule: Schedule) -> None:
        """Ranks at the stages of this one."""
        self._schedule = schedule

    def twin(self) -> Self:
        """A copy for a copy of the model."""
        made = super().twin()
        made._mean_N, made._count_N = self._mean_N.clone(), self._count_N.clone()
        return made

    def scores(self) -> UnitScores | None:
        """Those by which units are ranked at present, infinite for units that never were at work; None: by none."""
        if self._scores is None:
            return None
        scores_N = self._scores.numpy()
        return {key: scores_N[start : start + self._layout[key]] for key, start in self._starts.items()}

    # -- learning -------------------------------------------------------------------------------------------------

    def step_set(self, change: StepChange) -> None:
        """Keeps what is at work in the step."""
        self._state = change.now

    def before_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """Adds what an optimizer is about to apply to the scores of the step in force."""
        if not self.watches_optimizers:
            return
        own = parameters_held(optimizer)
        seen = [
            (path, weight, tensor)
            for path, weight, tensor in self._read(model, state.running)
            if id(tensor) in own and tensor.grad is not None
        ]
        if not seen:
            return
        sums = Sums(self._layout, self._mean_N.device)
        with torch.no_grad():
            for path, weight, tensor in seen:
                assert tensor.grad is not None
                sums.add((path, weight.role), weight, tensor.detach(), tensor.grad)
            total_N = sums.total()
        self._pending_N = total_N if self._pending_N is None else self._pending_N + total_N

    def _fold(self) -> None:
        """Takes what the step in force came to into the running means, relative to the mean of its units at work."""
        if self._pending_N is None or self._state is None:
            return
        pending_N, self._pending_N = self._pending_N, None
        at_work = np.zeros(len(self._mean_N), dtype=np.float32)
        for name, units in self._state.drawn.items():
            for role, kept in units.items() if self._state.running[name] else ():
                at_work[self._starts[self._layers.paths[name], role] + kept] = 1.0
        at_work_N = torch.from_numpy(at_work).to(pending_N.device)
        relative_N = pending_N * at_work_N.sum() / (pending_N * at_work_N).sum()
        at_work_N = at_work_N * torch.isfinite(relative_N)  # a step that is lost, as all zeros, teaches nothing
        self._count_N += at_work_N
        rate_N = at_work_N * (1 / self._count_N.clamp(min=1)).clamp(min=1 - DECAY)
        self._mean_N += rate_N * (relative_N.nan_to_num() - self._mean_N)

    # -- ranking --------------------------------------------------------------------------------------------------

    def before_step(self, step: int, state: StepState | None, model: nn.Module, device: torch.device) -> bool:
        """Takes the step in force into account before another one is set. Returns whether units are ranked anew."""
        if self._measure is None:
            return False
        self._mean_N, self._count_N = self._mean_N.to(device), self._count_N.to(device)
        self._fold()
        schedule = self._schedule
        point = max(schedule.stage_at(step)[1].start, step - step % schedule.refresh_every)
        if point == self._ranked_at:
            return False
        self._ranked_at = point
        if self._measure == "weight":
            self._weigh(model)
        elif not bool(self._count_N.any()):
            if step > 0:
                self.warn_once(
                    f"at step {step} the policy {schedule.policy}, which ranks units by their gradients, has seen no "
                    "step of an optimizer yet: they are drawn at random. It sees optimizers of torch.optim and their "
                    "subclasses; a run that is resumed must load the state of model.selection."
                )
            return False
        scores_N = torch.where(self._count_N > 0, self._mean_N, torch.inf)
        self._scores = scores_N.double().cpu()
        return True

    def _weigh(self, model: nn.Module) -> None:
        """Scores all units by their weights as they are."""
        sums = Sums(self._layout, self._mean_N.device)
        with torch.no_grad():
            for path, weight, tensor in self._read(model, dict.fromkeys(self._layers.kinds, True)):
                sums.add((path, weight.role), weight, tensor.detach())
            self._mean_N = sums.total()
        self._count_N = torch.ones_like(self._mean_N)

    def _read(self, model: nn.Module, running: Mapping[str, bool]) -> Iterator[tuple[str, UnitWeight, torch.Tensor]]:
        """The weights that have units, of the modules that run: their module's path, and the tensors."""
        done = set()
        for name, path in self._layers.paths.items():
            if not running[name] or path in done:
                continue
            done.add(path)
            module = model.get_submodule(path)
            variant = self._layers.variant(name, module)
            if variant is None:
                continue  # changed since transform, and not called since
            if id(variant) not in self._weights:
                self._weights[id(variant)] = (variant, unit_weights(variant))
            for weight in self._weights[id(variant)][1]:
                yield path, weight, resolve(module, weight.path)

    # -- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must load, to train what it would have trained: tensors on the CPU, and numbers."""
        if self._measure is None:
            return {}
        self._fold()
        return {
            "policy": self._schedule.policy,
            "units": [f"{path} {role} {size}" for (path, role), size in self._layout.items()],
            "mean": self._mean_N.cpu().clone(),
            "count": self._count_N.cpu().clone(),
            "scores": torch.zeros(0, dtype=torch.float64) if self._scores is None else self._scores.clone(),
            "ranked_at": self._ranked_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; call it before the first step is set.

        Raises EstfxError for the state of another policy or of another model.
        """
        own = self.state_dict()
        for name in ("policy", "units"):
            if state.get(name) != own.get(name):
                raise EstfxError(
                    f"this state of a selection is of {_told(name, state)}, and the model is made with "
                    f"{_told(name, own)}. Transform the model as it was when the state was saved."
                )
        if self._measure is not None:
            self._mean_N, self._count_N = state["mean"].clone(), state["count"].clone()
            self._scores = state["scores"].clone() if len(state["scores"]) else None
            self._ranked_at, self._pending_N = int(state["ranked_at"]), None
            self.invalidate()


def _told(name: str, state: Mapping[str, Any]) -> str:
    value = state.get(name)
    if name == "policy":
        return "a policy that ranks nothing" if value is None else f"the policy {value}"
    return f"{len(value or ())} modules' roles ({', '.join((value or ())[:3])}, …)"
