"""Ranks that train one model must draw one subnetwork: under FSDP one that skips another layer computes wrong values.

Draws are a pure function of the schedule, the seed and the step, so ranks differ only if one of these does, or the
model. All ranks tell each other what they hold, now and then, over a group of processes of its own on the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from estfx.errors import EstfxError
from estfx.runtime.follower import Follower, StepChange, StepState
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.run_fingerprint import drawn_of
from estfx.schedules import Schedule

__all__ = ["RankAgreement", "check_gradients"]

# By the group of all ranks. Neither is kept alive: torch ends the threads of a group that nothing holds any more, and
# one that lives until Python itself ends may then abort the process (pytorch#179291).
_groups: WeakKeyDictionary[Any, ReferenceType[Any]] = WeakKeyDictionary()


class RankAgreement(Follower):
    """Counts the steps that were set, and has the ranks compare at the first, and then every so many."""

    def __init__(self, schedule: Schedule, seed: int, layers: MountedLayers, every: int = 0) -> None:
        super().__init__()
        self._schedule, self._seed, self._layers = schedule, seed, layers
        self._every = every  # 0: never
        self.calls = 0

    def schedule_is(self, schedule: Schedule) -> None:
        """Compares this one from now on."""
        self._schedule = schedule

    def step_set(self, change: StepChange) -> None:
        """Raises EstfxError on every rank if two of them train something else."""
        if self.is_due(change.is_new_part):
            self.check(self._held(change.now))

    def is_due(self, changed: bool) -> bool:
        """Whether to compare at this call. Counts it."""
        self.calls += 1
        if self._every == 0 or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return False
        return changed or (self.calls - 1) % self._every == 0

    def check(self, held: Mapping[str, object]) -> None:
        """Raises EstfxError on every rank if two of them hold something else; `held` has the same keys on all."""
        own = {"calls of set_step": self.calls, **held}
        others: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(others, own, group=_group())
        differing = {name: [other.get(name) for other in others] for name in own}
        differing = {name: values for name, values in differing.items() if any(v != values[0] for v in values)}
        if differing:
            raise EstfxError(
                "the ranks do not agree on what to train, so that their gradients do not belong together: "
                f"{'; '.join(_in_words(name, values) for name, values in differing.items())}. Give every rank the same "
                "model, schedule and seed, and call set_step with the same step on each."
            )

    def _held(self, state: StepState) -> dict[str, object]:
        """What must be the same on all ranks."""
        layers = drawn_of(self._layers.kinds)
        drawn = [(name, role, units) for name, roles in state.drawn.items() for role, units in sorted(roles.items())]
        return {
            "step": state.step,
            "seed": self._seed,
            "schedule": _digest(self._schedule.model_dump_json()),
            "layers": f"{len(layers)} ({_digest(layers)})",
            "subnetwork": _digest(state.running, *(part for each in drawn for part in each)),
        }


def _group() -> Any:
    """All ranks, over gloo: it waits for no kernel on a GPU."""
    world = dist.group.WORLD
    known = _groups.get(world)
    group = None if known is None else known()
    if group is None:
        group = world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")
        _groups[world] = ref(group)
    return group


def _in_words(name: str, values: list[object]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(str(value), []).append(rank)
    each = (f"{value} on rank{'s' if len(own) > 1 else ''} {_some(own)}" for value, own in ranks.items())
    return f"{name} {', '.join(each)}"


def _some(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def check_gradients(model: nn.Module) -> None:
    """Raises EstfxError on every rank if the gradients of replicas differ: then nothing has averaged them.

    Of gradients that are no plain tensors (shards), and of the ones that are elsewhere, it says nothing.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    own = next((p.grad for p in model.parameters() if p.grad is not None), None)
    plain = own is not None and type(own) is torch.Tensor
    some = own.detach().flatten()[:1024].double().cpu() if own is not None and plain else None
    others: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(others, some, group=_group())
    if any(other is None or some is None or other.shape != some.shape for other in others):
        return
    largest = max(float(other.norm()) for other in others)
    if any(float((other - others[0]).norm()) > 1e-2 * largest for other in others):
        raise EstfxError(
            "the gradients differ from rank to rank: nothing averages them, so every rank trains a model of its own. "
            "Trainer leaves a model out of DDP if `trainer.evaluate()` or `predict()` was called before "
            "`trainer.train()`: use TrainingArguments(eval_on_start=True) instead."
        )


def _digest(*parts: object) -> str:
    """A short text that is the same for the same parts: arrays by their values, anything else by its representation."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()
