"""Evolving subnetworks in transformers' Trainer: one callback."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from estfx.costs import Plan, activity_of
from estfx.errors import EstfxError
from estfx.evolving import evolving_within, fill_in_total_steps
from estfx.integrations.resuming import load_selection, mismatch_of_length, refuse_another
from estfx.runtime import Selection, check_gradients, made_with, numbers_left_out
from estfx.stand_ins import CHECKPOINTING

__all__ = ["EvolvingCallback"]

log = logging.getLogger(__name__)


class EvolvingCallback(TrainerCallback, ExportableState):
    """Tells the model which step it is at, and writes what is at work into Trainer's logs under `estfx/…`.

    A schedule that was made without a number of steps (`Schedule.est()`) gets that of Trainer, which knows it from
    `max_steps` or from epochs, each time that Trainer begins: `auto_find_batch_size` begins anew with smaller batches.
    The step is Trainer's own, so a resumed run draws what the uninterrupted one would have drawn. Checkpoints say in
    `trainer_state.json` with which schedule, seed and layers they were made; to resume with others is refused. The
    scores of a selection policy that ranks units are there too, and are loaded from there. `total_flos` counts the
    parameters that were at work.

    With a `plan` (see `estfx.plan`) the logs carry FLOPs too: those spent since step 0, and the share that the whole
    model would have spent more. Reporters that Trainer adds by itself run before its callbacks; to have them show
    these figures, use `report_to="none"` and `callbacks=[EvolvingCallback(), TensorBoardCallback()]`.

    `reset_optimizer` forgets the optimizer's state (Adam's running means) at the beginning of each later stage.

    `accept_changes` resumes from a checkpoint that was made with another schedule, seed or other layers.
    """

    def __init__(
        self,
        plan: Plan | Mapping[str, Any] | None = None,
        *,
        reset_optimizer: bool = False,
        accept_changes: bool = False,
    ) -> None:
        self._plan = Plan.model_validate(plan) if isinstance(plan, Mapping) else plan
        self._reset_optimizer = reset_optimizer
        self._accept_changes = accept_changes
        self._tokens = 0  # on this rank, in the step so far
        self._counting: Any = None
        self._compared = False  # the gradients of all ranks
        self.made_with: dict[str, Any] | None = None  # what the model in training is made with
        self._selection: Selection | None = None  # what its policy has learnt

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint's `trainer_state.json`."""
        plan = None if self._plan is None else self._plan.model_dump(mode="json")
        learnt = {} if self._selection is None else self._selection.state_dict()
        return {
            "args": {
                "plan": plan,
                "reset_optimizer": self._reset_optimizer,
                "accept_changes": self._accept_changes,
            },
            "attributes": {"made_with": self.made_with, "selection": _as_text(learnt) if learnt else None},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses a model that was not transformed, which would train whole and say nothing, and another checkpoint."""
        model = evolving_within(kwargs["model"])
        if fill_in_total_steps(model, lambda: state.max_steps) and self._plan is not None:
            self._plan = self._plan.with_boundaries(model.schedule)
        self.made_with = made_with(model)
        self._selection = model.selection
        if state.global_step > 0:
            stored = _stored(state)
            if not self._accept_changes:
                refuse_another(state.global_step, stored.get("made_with"), self.made_with)
            text = stored.get("selection")
            learnt = {} if text is None else _from_text(text)
            load_selection(state.global_step, learnt, model.selection, self._accept_changes)
        if told := mismatch_of_length(model.schedule, state.max_steps):
            log.warning("Trainer %s", told)
        _refuse_unused_parameters(args, kwargs["model"], model)
        self._compared = False
        self._stop_counting()
        called = extract_model_from_parallel(kwargs["model"])  # adapters go past the call of the model itself
        self._counting = called.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Once per optimizer step, before its first micro-batch: picks the stage, draws the subnetwork."""
        self._tokens = 0
        model = evolving_within(kwargs["model"])
        model.set_step(state.global_step)
        if self._reset_optimizer and state.global_step == model.stage.start > 0:
            kwargs["optimizer"].state.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At the first step, has the ranks of a distributed run compare their gradients."""
        if not self._compared:
            self._compared = True
            check_gradients(evolving_within(kwargs["model"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes from `total_flos`, for which Trainer counts every parameter, those that took no part."""
        state.total_flos -= 6 * self._tokens * args.world_size * numbers_left_out(evolving_within(kwargs["model"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_counting()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds what the step just taken had at work."""
        logs: dict[str, Any] | None = kwargs.get("logs")
        if logs is None or "loss" not in logs:  # an evaluation or the closing summary
            return
        figures: dict[str, Any] = {
            f"estfx/{name}": value for name, value in asdict(activity_of(evolving_within(kwargs["model"]))).items()
        }
        if self._plan is not None:
            spent = self._plan.flops_until(state.global_step)
            figures["estfx/flops"] = spent
            figures["estfx/flops_saved"] = 1 - spent / (self._plan.whole.flops_model * state.global_step)
        logs.update(figures)
        state.log_history[-1].update(figures)  # Trainer stored a copy of the logs just before

    def _count(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get(getattr(model, "main_input_name", "input_ids"))
        if model.training and isinstance(tokens, torch.Tensor):  # as Trainer counts them
            self._tokens += tokens.numel()

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.remove()
            self._counting = None


def _refuse_unused_parameters(args: TrainingArguments, trained: Any, model: Any) -> None:
    """Raises EstfxError where DDP would wait for the gradients of layers that were skipped.

    With activation checkpointing Trainer has DDP look for no unused parameters, if it is not told to.
    """
    if args.parallel_mode != ParallelMode.DISTRIBUTED or args.fsdp or args.deepspeed:
        return
    asked = args.ddp_find_unused_parameters
    checkpoints = any(vars(module).get(CHECKPOINTING) for module in trained.modules())
    finds = not checkpoints if asked is None else asked
    if not finds and any(stage.layers < 1 for stage in model.schedule.stages):
        raise EstfxError(
            "the schedule skips layers, whose parameters then have no gradient, and DDP is not told to look for such "
            "parameters"
            f"{', since Trainer does not with activation checkpointing' if asked is None else ''}. Pass "
            "TrainingArguments(ddp_find_unused_parameters=True)."
        )


def _stored(state: TrainerState) -> dict[str, Any]:
    """What the callback of a checkpoint's run wrote into it."""
    callbacks: Any = state.stateful_callbacks or {}
    stored = callbacks.get(EvolvingCallback.__name__)
    each = stored[0] if isinstance(stored, list) and stored else stored
    return dict((each or {}).get("attributes") or {})


def _as_text(state: Mapping[str, Any]) -> str:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = {name: json.dumps(value) for name, value in state.items() if name not in tensors}
    return base64.b64encode(safetensors.torch.save(tensors, rest)).decode()


def _from_text(text: str) -> dict[str, Any]:
    data = base64.b64decode(text)
    length = int.from_bytes(data[:8], "little")  # of the header, as safetensors has it
    rest = json.loads(data[8 : 8 + length])["__metadata__"]
    return {**safetensors.torch.load(data), **{name: json.loads(value) for name, value in rest.items()}}
