"""Notes every step of a Trainer run: into the run folder, on the screen, and for the summary."""

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from estfx.costs import Plan, activity_of
from estfx.errors import EstfxError
from estfx.training.progress_display import ProgressDisplay
from estfx.training.run_folder import RunFolder
from estfx.training.step_records import StepRecord

__all__ = ["StepRecorder", "TrainingFailedError"]


class TrainingFailedError(EstfxError):
    """The input was good, but the training did not go well."""

    exit_status = 1


class StepRecorder(TrainerCallback):
    """Must stand before `EvolvingCallback` in Trainer's list, so that the draw counts towards a step's seconds."""

    def __init__(self, folder: RunFolder, display: ProgressDisplay, plan: Plan, tokens_per_step: int) -> None:
        self.steps: list[StepRecord] = []  # those of a run that is resumed among them
        self._folder = folder
        self._display = display
        self._plan = plan
        self._tokens_per_step = tokens_per_step
        self._begun = 0.0
        self._seconds = 0.0
        self._learning_rate = 0.0
        self._compiled = _graphs_compiled()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._learning_rate = kwargs["optimizer"].param_groups[0]["lr"]
        self._display.begin(state.global_step)
        self._begun = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops the clock: forward, backward, clipping, optimizer, scheduler."""
        self._seconds = _now() - self._begun

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the step down, once its loss is known."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:  # an evaluation or the closing summary
            return
        step = state.global_step - 1  # Trainer has counted the step already
        activity = activity_of(extract_model_from_parallel(kwargs["model"]))
        compiled, self._compiled = self._compiled, _graphs_compiled()
        record = StepRecord(step, activity.stage, float(logs["loss"]), self._seconds)
        self._folder.write_metrics(
            {
                "kind": "step",
                **asdict(record),
                "learning_rate": self._learning_rate,
                "grad_norm": logs.get("grad_norm"),
                "tokens": self._tokens_per_step,
                "flops": self._plan.stages[activity.stage - 1].flops_model,
                "compiled": self._compiled - compiled,  # graphs
                **asdict(activity),
            }
        )
        self._display.step(step, activity, record.loss, record.seconds, self._learning_rate)
        self.steps.append(record)
        if not math.isfinite(record.loss):
            raise TrainingFailedError(
                f"the loss is {record.loss} at step {step}; lower train.learning_rate or train.max_grad_norm."
            )

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the held-out loss down."""
        loss = float(kwargs["metrics"]["eval_loss"])
        self._folder.write_metrics({"kind": "eval", "step": state.global_step, "held_out_loss": loss})
        self._display.held_out(state.global_step, loss)


def _graphs_compiled() -> int:
    """By torch.compile, in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # or the clock would stop before the work does
    return time.perf_counter()
