"""Trains a decoder through the stages of a schedule, with transformers' Trainer, into a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from estfx.costs import plan as plan_of
from estfx.errors import EstfxError
from estfx.integrations.transformers import EvolvingCallback
from estfx.quiet import quiet_transformers
from estfx.runtime import differences, made_with
from estfx.schedules import measured_losses
from estfx.settings import SettingsError
from estfx.tracing import ATTRIBUTE
from estfx.training.checkpointing_trainer import CheckpointingTrainer, StopsOnSignal
from estfx.training.checkpoints import checked, latest, step_of, tidy
from estfx.training.compiler_check import why_not_compiled
from estfx.training.document_sources import documents
from estfx.training.fsdp_state import shard
from estfx.training.learning_rate import LearningRate
from estfx.training.model_spec import build_model, fitting_length
from estfx.training.progress_display import ProgressDisplay
from estfx.training.run_folder import RunFolder
from estfx.training.step_records import StepRecord
from estfx.training.text_data import Blocks, Tokens, corpus_of, tokens_of
from estfx.training.train_config import RunConfig
from estfx.training.train_recorder import StepRecorder
from estfx.training.train_summary import stage_seconds
from estfx.transformation import transform

__all__ = ["StoppedError", "train"]


class StoppedError(EstfxError):
    """The run was told to terminate, by SIGTERM or by Ctrl-C, and can be resumed."""

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        self.exit_status = 130 if interrupted else 3


def train(
    config: RunConfig | None,
    folder: str | Path,
    console: Console,
    *,
    resume: bool = False,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Runs the training that `config` describes, shows it on `console`, and returns the summary.

    The folder then holds `metrics.jsonl`, `config.yaml`, `made_with.json` (schedule, seed, layers),
    `environment.json`, `summary.json` and `model/`, an ordinary checkpoint. With `resume` the run in the folder goes on
    from its last complete checkpoint; a `config` that is given too must be the run's own, unless `accept_changes`.
    Under torchrun every rank calls this, and the first one writes.

    Raises SettingsError for what cannot be run, CheckpointError for a checkpoint that is damaged, TrainingFailedError
    if the loss is lost or a checkpoint cannot be written, StoppedError after SIGTERM or Ctrl-C.
    """
    begun = time.perf_counter()
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        console = Console(quiet=True)
    with RunFolder(folder, resume=resume, writes=first) as run, quiet_transformers():
        asked = config or RunConfig()
        config = _resumed(config, run, accept_changes) if resume else asked.resolved()
        arguments = _arguments(config, run)
        torch.manual_seed(config.train.seed)
        tokens = tokens_of(config.data.tokenizer)
        model = _trainable(config, tokens)
        corpus = corpus_of(documents(config.data.sources, config.data.column), tokens)
        rows = config.train.batch_size * config.train.accumulation * arguments.world_size  # of an optimizer step
        train_blocks = _blocks(corpus.train, config.data.seq_len, rows)
        held_out_blocks = Blocks(corpus.held_out, config.data.seq_len, config.data.held_out_blocks)
        schedule = config.schedule.build(config.train.total_steps)
        run.begin()
        run.write_config(config)
        run.write_environment()
        with ProgressDisplay(console, config.train.total_steps) as display:
            compiles = _compiles(config, display)
            plan = plan_of(model, schedule, batch_size=rows, seq_len=config.data.seq_len)
            if asked.takes_default and not resume:
                display.say(f"no schedule is named: {measured_losses().why_default(plan.kind_of_run(model))}")
            if config.train.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model = transform(model, schedule, seed=config.train.seed, compile=compiles)
            if config.train.zero_joining:
                model.zero_joining()
            if config.train.distribution == "fsdp":
                shard(model, vars(model)[ATTRIBUTE].layers.module_paths, arguments.device)
            run.write_made_with(made_with(model))
            display.expect(plan, rows * config.data.seq_len, compiles)
            learning_rate = LearningRate(
                plan,
                warmup_steps=config.train.warmup_steps,
                shape=config.train.learning_rate_shape,
                falls_with=config.train.learning_rate_falls_with,
                rewarm_steps=config.train.rewarm_steps,
                decay_share=config.train.decay_share,
            )
            recorder = StepRecorder(run, display, plan, rows * config.data.seq_len)
            stops = StopsOnSignal(display.say)
            resets = config.train.optimizer_state == "reset"
            trainer = CheckpointingTrainer(
                model=model,
                args=arguments,
                train_dataset=train_blocks,
                eval_dataset=held_out_blocks,
                callbacks=[
                    recorder,
                    stops,
                    EvolvingCallback(plan, reset_optimizer=resets, accept_changes=accept_changes),
                    *_trackers(config.train.report_to),  # after it, to be told its figures
                ],
                keep=config.train.keep_checkpoints,
                learning_rate=learning_rate,
            )
            trainer.remove_callback(PrinterCallback)  # the display prints
            checkpoint = None
            if resume:
                checkpoint = _checkpoint(run, None if accept_changes else arguments.world_size, recorder)
                display.restore(recorder.steps)
                display.say(
                    f"going on from {checkpoint.name}" if checkpoint else "no checkpoint yet: from the beginning"
                )
            arguments.eval_on_start = checkpoint is None
            prepared = time.perf_counter()
            with stops.listening():
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            trained = time.perf_counter()
            if stops.stopped:
                raise StoppedError(
                    f"{stops.told}: stopped after {trainer.state.global_step} steps, with a checkpoint. "
                    f"`estfx train --resume --out {folder}` goes on.",
                    stops.interrupted,
                )
            if config.train.total_steps not in run.held_out():
                trainer.evaluate()
            held_out = list(run.held_out().values())
        model.eval()
        trainer.save_pretrained(run.model)
        summary: dict[str, Any] = {
            "folder": str(folder),
            "model": config.model.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": len(recorder.steps),
            "compiled": compiles,
            "held_out_loss": {
                "before": held_out[0],
                "after": held_out[-1],
                "tokens": len(held_out_blocks) * (config.data.seq_len - 1),
            },
            "flops_saved": {"layers": plan.saving_layers, "model": plan.saving_model},
            "stages": stage_seconds(plan, recorder.steps),
            "wall_seconds": {
                "prepare": prepared - begun,
                "train": trained - prepared,
                "total": time.perf_counter() - begun,
            },
        }
        run.write_summary(summary)
    return summary


def _resumed(config: RunConfig | None, run: RunFolder, accept_changes: bool) -> RunConfig:
    """The run's own configuration. Raises SettingsError if another is asked for, or if there is nothing left to do."""
    if run.is_finished():
        raise SettingsError(f"the run in {run.path} is finished; begin a new one with another --out.")
    before = RunConfig.from_yaml(run.config)
    if config is None:
        return before
    now = config.resolved()
    changed = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    if changed and not accept_changes:
        raise SettingsError(
            f"the run in {run.path} was begun with something else: {'; '.join(changed)}. Leave the changes out, or "
            "pass --accept-changes."
        )
    return now


def _checkpoint(run: RunFolder, ranks: int | None, recorder: StepRecorder) -> Path | None:
    """The last complete checkpoint, to which the metrics go back; None if there is none yet."""
    if run.writes:
        tidy(run.checkpoints)
    found = latest(run.checkpoints)
    if found is None:
        run.go_back_to(0)
        return None
    run.go_back_to(step_of(checked(found, ranks)))
    for line in run.metrics():
        if line["kind"] == "step":
            recorder.steps.append(StepRecord(*(line[name] for name in ("step", "stage", "loss", "seconds"))))
    return found


def _blocks(tokens: NDArray[Any], seq_len: int, rows: int) -> Blocks:
    """As many blocks as make whole optimizer steps. Raises SettingsError if there are too few for one."""
    steps = len(Blocks(tokens, seq_len)) // rows
    if steps == 0:
        raise SettingsError(
            f"the text makes {len(Blocks(tokens, seq_len))} blocks of {seq_len} tokens to train on, a step takes "
            f"{rows} (train.batch_size × train.accumulation × processes): give more text, or make the step smaller."
        )
    return Blocks(tokens, seq_len, steps * rows)


def _trainable(config: RunConfig, tokens: Tokens) -> PreTrainedModel:
    model = build_model(config.model.name, config.model.config).model
    if not isinstance(model, PreTrainedModel):
        raise SettingsError(
            f"{config.model.name} makes a `{type(model).__name__}`; `estfx train` trains models of transformers. "
            "For any other, call estfx.transform in a training loop of your own."
        )
    text = model.config.get_text_config()
    if text.vocab_size < tokens.vocab_size:
        what = "bytes as tokens" if tokens.tokenizer is None else "the tokens of data.tokenizer"
        raise SettingsError(
            f"the model's vocab_size is {text.vocab_size}; {what} need at least {tokens.vocab_size}: "
            f"--set model.config.vocab_size={tokens.vocab_size}."
        )
    fitting_length(model, config.data.seq_len, "data.seq_len")
    return model


def _compiles(config: RunConfig, display: ProgressDisplay) -> bool:
    if config.train.compile is not True and config.train.compile is not False:
        reason = why_not_compiled("cuda" if torch.cuda.is_available() else "cpu")
        if reason is not None:
            display.say(
                "WARNING: torch.compile does not work on this machine, so the run is NOT compiled and slower "
                f"({reason}). It needs a C++ compiler and Python's headers: on Debian, g++ and python3-dev."
            )
        return reason is None
    return config.train.compile


def _trackers(names: Sequence[str]) -> list[TrainerCallback]:
    found = []
    for name in names:
        try:
            found.append(INTEGRATION_TO_CALLBACK[name]())
        except (KeyError, RuntimeError, ImportError) as error:
            raise SettingsError(f"train.report_to: {name} cannot be used: {error}") from None
    return found


def _arguments(config: RunConfig, run: RunFolder) -> TrainingArguments:
    settings = config.train
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise SettingsError("train.precision fp16 needs a GPU; use bf16 or float32 on the CPU.")
    if settings.distribution == "fsdp":
        if settings.precision == "fp16":
            raise SettingsError("train.precision fp16 is not for train.distribution fsdp; use bf16, or ddp.")
        if "WORLD_SIZE" not in os.environ:
            raise SettingsError(
                "train.distribution fsdp shares the model out among processes; there is one. Start several: "
                "torchrun --nproc-per-node 2 -m estfx train …"
            )
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=settings.total_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        optim=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        ddp_find_unused_parameters=True,  # those of skipped layers
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ and not torch.cuda.is_available() else None,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,  # a lost loss must be seen
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        prediction_loss_only=True,
        eval_strategy="steps" if isinstance(settings.eval_every, int) else "no",
        eval_steps=settings.eval_every if isinstance(settings.eval_every, int) else None,
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or 500,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
