"""Evolving subnetworks in Lightning: one callback, for automatic and for manual optimization."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from estfx.errors import EstfxError
from estfx.evolving import evolving_within, fill_in_total_steps
from estfx.integrations.resuming import load_selection, mismatch_of_length, refuse_another
from estfx.runtime import check_gradients, made_with, parameters_held

__all__ = ["EvolvingCallback"]

log = logging.getLogger(__name__)


class EvolvingCallback(Callback):
    """Tells the evolving model in a LightningModule which step it is at.

    A schedule that was made without a number of steps (`Schedule.est()`) gets that of the Trainer, which knows it from
    `max_steps`, or from epochs and the data. A step is one of an optimizer that holds parameters of the model.
    `global_step` counts those of all optimizers, so that with two of them a schedule would run at twice its pace.
    Micro-batches of one step get the same subnetwork. Checkpoints say how many steps were done, and with which
    schedule, seed and layers; to resume with others is refused. The scores of a selection policy that ranks units are
    there too.

    `accept_changes` resumes from a checkpoint that was made with another schedule, seed or other layers.

    Raises EstfxError if the module holds no evolving model, or more than one, and if no optimizer has its parameters.
    """

    def __init__(self, *, accept_changes: bool = False) -> None:
        self._accept_changes = accept_changes
        self._steps: dict[int, int] = {}  # done, by the number of the optimizer
        self._stored: dict[str, Any] | None = None  # what a checkpoint said
        self._model: Any = None
        self._hooks: list[Any] = []
        self._compared = False  # the gradients of all ranks

    @property
    def step(self) -> int:
        """How many optimizer steps the model has been trained for."""
        return max(self._steps.values(), default=0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the model and its optimizers, and compares it with the checkpoint that is gone on from."""
        self._model = model = evolving_within(pl_module)
        fill_in_total_steps(model, lambda: _steps_of(trainer))
        if self._stored is not None:
            if not self._accept_changes:
                refuse_another(self.step, self._stored["made_with"], made_with(model))
            load_selection(self.step, self._stored["selection"], model.selection, self._accept_changes)
        own = {id(parameter) for parameter in model.parameters()}
        optimizers = [(i, each) for i, each in enumerate(trainer.optimizers) if parameters_held(each) & own]
        if not optimizers:
            raise EstfxError(
                f"none of the {len(trainer.optimizers)} optimizers of `{type(pl_module).__name__}` holds a parameter "
                f"of the evolving `{type(model).__name__}`, so that no step of it can be counted. Give its parameters "
                "to an optimizer in configure_optimizers."
            )
        self._unhook()
        self._compared = False
        for number, optimizer in optimizers:
            self._steps.setdefault(number, 0)
            self._hooks.append(optimizer.register_step_post_hook(self._count(number)))
        if trainer.max_steps > 0 and (told := mismatch_of_length(model.schedule, trainer.max_steps)):
            log.warning("Lightning %s", told)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Picks the stage and draws the subnetwork; the same one until an optimizer steps."""
        self._model.set_step(self.step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """At the first step of a run, has the ranks compare their gradients."""
        if not self._compared:
            self._compared = True
            check_gradients(self._model)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unhook()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unhook()

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        if self._model is None:
            return {} if self._stored is None else {**self._stored, "steps": self._steps}
        return {
            "steps": self._steps,
            "made_with": made_with(self._model),
            "selection": self._model.selection.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what a checkpoint says; it is compared with the model when training starts."""
        if state_dict:
            self._stored = state_dict
            self._steps = dict(state_dict["steps"])

    def _count(self, number: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._steps[number] += 1

        return hook

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


def _steps_of(trainer: Trainer) -> int:
    """How many optimizer steps a run has. Raises EstfxError if Lightning does not know it."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf") or steps <= 0:
        raise EstfxError(
            "the schedule is made of shares of the run, and Lightning does not know how long that is: give the Trainer "
            "max_steps, or max_epochs and data that have a length, or make the schedule with a number of steps."
        )
    return int(steps)
