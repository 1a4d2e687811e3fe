"""Has layers that do not run yet follow those that do, so that they are trained layers when they join.

After every step of an optimizer a layer that was skipped is given the weights of the one that it is a copy of, and its
running means. So there is no moment at which anything must be copied: a checkpoint holds what a run needs to go on, and
a step that is skipped, as by loss scaling, loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from estfx.runtime.follower import Follower, StepChange, StepState
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.optimizer_hooks import parameters_held
from estfx.schedules import Schedule

__all__ = ["CopiedLayers", "source_of"]

Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # what is copied, and to where


class CopiedLayers(Follower):
    """The copies of a model's layers, at the step in force."""

    def __init__(self, schedule: Schedule, layers: MountedLayers) -> None:
        super().__init__()
        self.watches_optimizers = schedule.copies_layers
        self._paths, self._module_paths = layers.paths, layers.module_paths
        self._known: tuple[object, Pairs, Pairs] | None = None  # by what runs and of which tensors
        self._followed = False  # a step of an optimizer, since the process began

    def twin(self) -> Self:
        """One for a copy of the model, whose tensors are others."""
        made = super().twin()
        made._known, made._followed = None, False
        return made

    def after_optimizer(self, state: StepState, model: nn.Module, optimizer: Optimizer) -> None:
        """Copies what the optimizer may have changed."""
        if not self.watches_optimizers or all(state.running.values()):
            return
        parameters, buffers = self._pairs(state, model)
        own = parameters_held(optimizer)
        if not any(id(source) in own for source, _ in parameters):
            return  # an optimizer of something else
        self._followed = True
        with torch.no_grad():
            _copy([*parameters, *buffers, *_means(optimizer, parameters, own)])

    def step_set(self, change: StepChange) -> None:
        """In the midst of a run, warns if layers join and none has followed another."""
        if not self.watches_optimizers or not change.in_training or change.before is None or self._followed:
            return
        running, before = change.now.running, change.before.running
        if joining := sum(runs and not before[name] for name, runs in running.items()):
            self.warn_once(
                f"{joining} layers join at step {change.now.step} as they are, not as copies: no step of an optimizer "
                "was seen that holds the parameters of the layers that run. It sees optimizers of torch.optim and "
                "their subclasses, on the model's own parameters (not on master copies, as DeepSpeed makes them)."
            )

    def _pairs(self, state: StepState, model: nn.Module) -> tuple[Pairs, Pairs]:
        key = (*state.running.items(), *map(id, model.parameters()), *map(id, model.buffers()))
        if self._known is None or self._known[0] != key:
            modules = {path: model.get_submodule(path) for path in self._paths.values()}
            at_work = {self._paths[name] for name, runs in state.running.items() if runs}
            taken = {id(tensor) for path in at_work for tensor in _tensors(modules[path]).values()}
            parameters: Pairs = []
            buffers: Pairs = []
            for path in self._module_paths:
                if path in at_work:
                    continue
                source = source_of(path, modules, at_work)
                if source is None:
                    self.warn_once(
                        f"no layer that runs has parameters like those of `{path}`, so that it cannot join as a copy: "
                        "it joins as it was initialised."
                    )
                    continue
                theirs = _tensors(modules[source])
                for name, tensor in _tensors(modules[path]).items():
                    if id(tensor) not in taken:  # else layers share it
                        (parameters if isinstance(tensor, nn.Parameter) else buffers).append((theirs[name], tensor))
            self._known = key, parameters, buffers
        return self._known[1:]


def source_of(path: str, modules: Mapping[str, nn.Module], at_work: Collection[str]) -> str | None:
    """Which of the layers at work a layer is a copy of: the nearest one before it with the same tensors, or after it.

    `modules` are the layers by path, in the order of their calls. None if none has tensors of the same names and sizes.
    """
    order = list(modules)
    place = order.index(path)
    wanted = _shapes(modules[path])
    for other in (*reversed(order[:place]), *order[place:]):
        if other in at_work and _shapes(modules[other]) == wanted:
            return other
    return None


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in _tensors(module).items()}


def _means(optimizer: Optimizer, parameters: Pairs, own: set[int]) -> Pairs:
    """What the optimizer remembers of the parameters, to be copied; what has nothing to be copied to is made here."""
    pairs: Pairs = []
    for source, target in parameters:
        if id(source) not in own or id(target) not in own or source not in optimizer.state:
            continue
        before = optimizer.state[target]
        for key, value in optimizer.state[source].items():
            held = before.get(key)
            if not isinstance(value, torch.Tensor):
                before[key] = value
            elif isinstance(held, torch.Tensor) and held.shape == value.shape and held.dtype == value.dtype:
                pairs.append((value, held))
            else:
                before[key] = value.clone()
    return pairs


def _copy(pairs: Pairs) -> None:
    plain = [(source, target) for source, target in pairs if not isinstance(target, DTensor)]
    if plain:
        torch._foreach_copy_([target for _, target in plain], [source for source, _ in plain])
    for source, target in pairs:
        if isinstance(target, DTensor):
            target.copy_(source)
