"""Trains a decoder through the stages of a schedule, with transformers' Trainer, into a run folder."""

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

import estfx
from estfx.integrations.transformers import EvolvingCallback
from estfx.model_spec import build_model
from estfx.plan import Plan
from estfx.progress import ProgressDisplay
from estfx.quiet import quiet_transformers
from estfx.run_folder import RunFolder
from estfx.settings import SettingsError
from estfx.text_data import VOCAB_SIZE, Blocks, standard_library
from estfx.toolchain import why_not_compiled
from estfx.train_config import RunConfig
from estfx.train_recorder import StepRecorder
from estfx.train_summary import stage_seconds

__all__ = ["default_folder", "train"]


def train(config: RunConfig, folder: str | Path, console: Console) -> dict[str, Any]:
    """Runs the training that `config` describes, shows it on `console`, and returns the summary.

    The folder then holds `metrics.jsonl`, `config.yaml`, `environment.json`, `summary.json` and `model/`, an ordinary
    checkpoint. Raises SettingsError for what cannot be run, TrainingFailedError if the loss is lost.
    """
    begun = time.perf_counter()
    config = config.resolved()
    with RunFolder(folder) as run, quiet_transformers():
        run.write_config(config)
        run.write_environment()
        torch.manual_seed(config.train.seed)
        model = _trainable(config)
        corpus = standard_library()
        train_blocks = Blocks(corpus.train, config.data.seq_len)
        held_out_blocks = Blocks(corpus.held_out, config.data.seq_len, config.data.held_out_blocks)
        schedule = config.schedule.build(config.train.total_steps)
        with ProgressDisplay(console, config.train.total_steps) as display:
            compiles = _compiles(config, display)
            plan = estfx.plan(model, schedule, batch_size=config.train.batch_size, seq_len=config.data.seq_len)
            model = estfx.transform(model, schedule, seed=config.train.seed, compile=compiles)
            recorder = StepRecorder(run, display, plan, config.train.batch_size * config.data.seq_len)
            trainer = _trainer(config, run, model, plan, recorder, train_blocks, held_out_blocks)
            loss_before = _held_out_loss(trainer, run, step=0)
            display.say(f"held-out loss of the untrained model: {loss_before:.4f}")
            prepared = time.perf_counter()
            trainer.train()
            trained = time.perf_counter()
            loss_after = _held_out_loss(trainer, run, step=config.train.total_steps)
        model.eval()
        model.save_pretrained(run.model)
        summary: dict[str, Any] = {
            "folder": str(folder),
            "model": config.model.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": len(recorder.steps),
            "compiled": compiles,
            "held_out_loss": {
                "before": loss_before,
                "after": loss_after,
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


def default_folder(model_name: str) -> Path:
    """`runs/<model>-<time>`, below the current folder."""
    return Path("runs") / f"{Path(model_name.partition(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _trainable(config: RunConfig) -> PreTrainedModel:
    model = build_model(config.model.name, config.model.config).model
    if not isinstance(model, PreTrainedModel):
        raise SettingsError(
            f"{config.model.name} makes a `{type(model).__name__}`; `estfx train` trains models of transformers. "
            "For any other, call estfx.transform in a training loop of your own."
        )
    text = model.config.get_text_config()
    if text.vocab_size < VOCAB_SIZE:
        raise SettingsError(
            f"the model's vocab_size is {text.vocab_size}; bytes as tokens need at least {VOCAB_SIZE}: "
            f"--set model.config.vocab_size={VOCAB_SIZE}."
        )
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < config.data.seq_len:
        raise SettingsError(
            f"the model takes {longest} positions, but data.seq_len is {config.data.seq_len}; make one fit the other."
        )
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


def _trainer(
    config: RunConfig,
    run: RunFolder,
    model: PreTrainedModel,
    plan: Plan,
    recorder: StepRecorder,
    train_blocks: Dataset[dict[str, torch.Tensor]],
    held_out_blocks: Dataset[dict[str, torch.Tensor]],
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(run.path),
        max_steps=config.train.total_steps,
        per_device_train_batch_size=config.train.batch_size,
        per_device_eval_batch_size=config.train.batch_size,
        learning_rate=config.train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.train.warmup_steps,
        weight_decay=config.train.weight_decay,
        adam_beta2=config.train.adam_beta2,
        max_grad_norm=config.train.max_grad_norm,
        seed=config.train.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a lost loss must be seen
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        prediction_loss_only=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_blocks,
        eval_dataset=held_out_blocks,
        callbacks=[recorder, EvolvingCallback(plan)],
    )
    trainer.remove_callback(PrinterCallback)  # the display prints
    return trainer


def _held_out_loss(trainer: Trainer, run: RunFolder, step: int) -> float:
    trainer.args.dataloader_drop_last = False  # every held-out block counts; while training all batches are alike
    loss = float(trainer.evaluate()["eval_loss"])
    trainer.args.dataloader_drop_last = True
    run.write_metrics({"kind": "eval", "step": step, "held_out_loss": loss})
    return loss
