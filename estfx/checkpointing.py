"""A Trainer whose checkpoints are complete or not there, and that stops with one when it is told to terminate."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from estfx.checkpoints import UNFINISHED, finish, latest, load_state, save_state, tidy
from estfx.train_recorder import TrainingFailedError

__all__ = ["CheckpointingTrainer", "StopsOnSignal"]


class CheckpointingTrainer(Trainer):
    """Trainer, but a checkpoint is written aside and then renamed, the optimizer's state in safetensors."""

    def __init__(self, *args: Any, keep: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keep = keep
        self._saving = False

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / UNFINISHED) if self._saving else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if self.args.should_save:
            tidy(self.folder)
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
            if dist.is_initialized():
                dist.barrier()  # every rank has written its random state
            if self.args.should_save:
                finish(self.folder, step, self._keep)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            tidy(self.folder)
            last = latest(self.folder)
            survives = f"{last.name} is complete" if last is not None else "there is no earlier one"
            raise TrainingFailedError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}; {survives}. Make room; "
                "then `estfx train --resume` goes on from the last complete one."
            ) from error
        finally:
            self._saving = False

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        if self.args.should_save:
            save_state(self.optimizer.state_dict(), Path(output_dir), "optimizer")
            (Path(output_dir) / "scheduler.json").write_text(json.dumps(self.lr_scheduler.state_dict()) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        if checkpoint is not None:
            self.optimizer.load_state_dict(load_state(Path(checkpoint), "optimizer"))
            self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / "scheduler.json").read_text()))


class StopsOnSignal(TrainerCallback):
    """On SIGTERM, the step in hand is finished, a checkpoint is written, and the training stops."""

    EVERY = 10  # steps, at which several processes ask each other

    def __init__(self) -> None:
        self.stopped = False
        self._received = False
        self._before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked(state.global_step, args.device) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def _asked(self, step: int, device: torch.device) -> bool:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self._received
        if step % self.EVERY:
            return False
        any_received = torch.tensor(int(self._received), device=device)
        dist.all_reduce(any_received, dist.ReduceOp.MAX)
        return bool(any_received.item())
