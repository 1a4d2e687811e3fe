"""Evolving subnetworks in transformers' Trainer: one callback."""

from dataclasses import asdict
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from estfx.activity import activity_of
from estfx.errors import EstfxError
from estfx.plan import Plan

__all__ = ["EvolvingCallback"]


class EvolvingCallback(TrainerCallback):
    """Tells the model which step it is at, and writes what is at work into Trainer's logs under `estfx/…`.

    All state lives on the model, none here, because Trainer may replace callbacks when it resumes. A resumed run
    draws what the uninterrupted one would have drawn, since Trainer restores its step counter.

    With a `plan` (see `estfx.plan`) the logs carry FLOPs too: those spent since step 0, and the share that the whole
    model would have spent more. Reporters that Trainer adds by itself run before its callbacks; to have them show
    these figures, use `report_to="none"` and `callbacks=[EvolvingCallback(), TensorBoardCallback()]`.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self._plan = plan

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses a model that was not transformed: it would train whole, and say nothing."""
        model = _evolving(kwargs["model"])
        if not callable(getattr(model, "set_step", None)):
            raise EstfxError(
                f"`{type(model).__name__}` is not an evolving model: call `estfx.transform(model, schedule)` before "
                "you give it to Trainer."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Once per optimizer step, before its first micro-batch: picks the stage, draws the subnetwork."""
        _evolving(kwargs["model"]).set_step(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds what the step just taken had at work."""
        logs: dict[str, Any] | None = kwargs.get("logs")
        if logs is None or "loss" not in logs:  # an evaluation or the closing summary
            return
        figures: dict[str, Any] = {
            f"estfx/{name}": value for name, value in asdict(activity_of(_evolving(kwargs["model"]))).items()
        }
        if self._plan is not None:
            spent = flops_until(self._plan, state.global_step)
            figures["estfx/flops"] = spent
            figures["estfx/flops_saved"] = 1 - spent / (self._plan.whole.flops_model * state.global_step)
        logs.update(figures)
        state.log_history[-1].update(figures)  # Trainer stored a copy of the logs just before


def flops_until(plan: Plan, num_steps: int) -> float:
    """The FLOPs of the whole model's graph, forward and backward, in the first `num_steps` optimizer steps."""
    return sum(
        stage.flops_model * (min(num_steps, stage.stop) - stage.start)
        for stage in plan.stages
        if num_steps > stage.start
    )


def _evolving(model: nn.Module) -> Any:
    return extract_model_from_parallel(model)
