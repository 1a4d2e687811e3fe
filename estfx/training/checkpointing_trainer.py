"""A Trainer whose checkpoints are complete or not there, and that stops with one when it is told to terminate."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import model_has_dtensor
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from estfx.tracing import left_sharded
from estfx.training.checkpoints import UNFINISHED, finish, latest, load_state, save_state, tidy
from estfx.training.fsdp_state import load_optimizer_state, load_weights, optimizer_state, weights
from estfx.training.train_recorder import TrainingFailedError

__all__ = ["CheckpointingTrainer", "StopsOnSignal"]


class CheckpointingTrainer(Trainer):
    """Trainer, but a checkpoint is written aside and then renamed, the optimizer's state in safetensors.

    A model that is in shards (`estfx.fsdp.shard`) stays in them, on all kinds of devices; its checkpoints are whole.
    `learning_rate` gives the factor on the peak rate at each step.
    """

    def __init__(self, *args: Any, learning_rate: Callable[[int], float], keep: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rate = learning_rate
        self._keep = keep
        self._saving = False
        self._in_shards = model_has_dtensor(self.model)
        if self._in_shards:  # to be wrapped in nothing: only autocast is added
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """The learning rates of the run's own rule."""
        # a function, of which a checkpoint holds nothing; it would hold all of an object
        optimizer = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(optimizer, lambda step: self._learning_rate(step))
        return self.lr_scheduler

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def save_pretrained(self, folder: Path) -> None:
        """Writes an ordinary checkpoint of the model. Every rank must call it."""
        model: Any = self.model
        state = weights(model) if self._in_shards else None
        if self.args.should_save:
            model.save_pretrained(folder, state_dict=state)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's, but with the last batch: every held-out block counts, while training batches are all alike."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, after which the model is as it was."""
        assert self.model is not None
        with left_sharded(self.model):
            return super().evaluation_loop(*args, **kwargs)

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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self._in_shards and state_dict is None:
            assert self.model is not None
            state_dict = weights(self.model)
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._in_shards:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        assert self.model is not None
        files = Path(resume_from_checkpoint).glob("model*.safetensors")
        load_weights(self.model, {name: tensor for file in files for name, tensor in load_file(file).items()})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = optimizer_state(self.optimizer)
        if self.args.should_save:
            save_state(state, Path(output_dir), "optimizer")
            (Path(output_dir) / "scheduler.json").write_text(json.dumps(self.lr_scheduler.state_dict()) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        if checkpoint is not None:
            load_optimizer_state(self.optimizer, load_state(Path(checkpoint), "optimizer"))
            self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / "scheduler.json").read_text()))


class StopsOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C, the step in hand is finished, a checkpoint is written, and the training stops.

    A second Ctrl-C stops at once. `say` tells the user.
    """

    EVERY = 10  # steps, at which several processes ask each other

    def __init__(self, say: Callable[[str], None]) -> None:
        self.stopped = self.interrupted = False
        self._say = say
        self._received = False

    @property
    def told(self) -> str:
        return "interrupted" if self.interrupted else "told to terminate"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, both signals are taken; before and after, they do what they did."""
        if threading.current_thread() is not threading.main_thread():  # Python hands signals to no other
            yield
            return
        before = {each: signal.signal(each, self._receive) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked(state.global_step, args.device) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received:
                raise KeyboardInterrupt
            self.interrupted = True
            self._say("interrupted: the step in hand is finished and a checkpoint written; Ctrl-C again stops at once")
        self._received = True

    def _asked(self, step: int, device: torch.device) -> bool:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self._received
        if step % self.EVERY:
            return False
        any_received = torch.tensor(int(self._received), device=device)
        dist.all_reduce(any_received, dist.ReduceOp.MAX)
        return bool(any_received.item())
