"""What of several runs can be compared, and what a run saves against one that trains the whole model all along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from estfx.run_report.runs import Run
from estfx.run_report.settings_table import in_words
from estfx.training import LEFT_OUT, RunConfig

__all__ = ["against", "first_dense", "warnings_about"]

_LOSSES = ("source", "column", "tokenizer", "seq_len", "held_out_blocks")  # of the configuration's data
_RECIPE = ("total_steps", "batch_size", "accumulation", "optimizer", "learning_rate", "learning_rate_shape",
           "decay_share", "learning_rate_falls_with", "warmup_steps", "rewarm_steps", "optimizer_state", "weight_decay",
           "adam_beta2", "max_grad_norm", "seed", "precision")  # fmt: skip
_SPEED = ("compile", "precision", "distribution", "gradient_checkpointing")


def first_dense(runs: Sequence[Run]) -> Run | None:
    """The first run whose schedule keeps everything."""
    return next((run for run in runs if run.dense), None)


def warnings_about(runs: Sequence[Run]) -> list[str]:
    """What of these runs cannot be compared with the first one's, and why."""
    first = runs[0]
    found = []
    for run in runs[1:]:
        pair = f"{first.label} and {run.label}"
        if first.config is None or run.config is None:
            found.append(
                f"{pair}: without a readable config.yaml of both it is not known whether they can be compared."
            )
            continue
        if other := _model_differs(first, run):
            found.append(
                f"{pair} train different models ({other}). Their losses, seconds and FLOPs cannot be compared with one "
                "another; what each saves of its own model's FLOPs can."
            )
        if other := _differs(first, run, "data", _LOSSES):
            found.append(f"{pair} read different data ({other}). Their losses cannot be compared.")
        if other := _differs(first, run, "train", _RECIPE):
            found.append(f"{pair} are trained with different settings ({other}), not only with different schedules.")
        machine = in_words(first.environment or {}, run.environment or {})
        if other := "; ".join(filter(None, [machine, _differs(first, run, "train", _SPEED)])):
            found.append(f"{pair} ran under different conditions ({other}). Their seconds cannot be compared.")
    return found


def against(run: Run, dense: Run | None) -> dict[str, Any] | None:
    """What a run saves against a dense one, over the steps that both have done. None if they cannot be compared.

    `flops_saved` and `seconds_saved` are fractions of the dense run's; seconds are those of the steps, compilation
    included. `held_out_loss` is the difference after as many steps, in nats a token: above 0 is worse than dense.
    """
    if dense is None or dense is run or _model_differs(run, dense):
        return None
    common = min(int(run.steps.step[-1]), int(dense.steps.step[-1])) + 1
    mine, theirs = (each.steps.step < common for each in (run, dense))
    whole = _seconds_per_step(dense, 1)
    stages = {int(number): _seconds_per_step(run, int(number)) for number in sorted(set(run.steps.stage.tolist()))}
    same_loss = not _differs(run, dense, "data", _LOSSES)
    same_speed = run.environment == dense.environment and not _differs(run, dense, "train", _SPEED)
    return {
        "run": dense.label,
        "steps": common,
        "flops_saved": 1 - float(run.steps.flops[mine].sum()) / float(dense.steps.flops[theirs].sum()),
        "seconds_saved": 1 - float(run.steps.seconds[mine].sum()) / float(dense.steps.seconds[theirs].sum())
        if same_speed
        else None,
        "seconds_per_step": [
            {"stage": number, "of_dense": None if own is None or not whole or not same_speed else own / whole}
            for number, own in stages.items()
        ],
        **(_loss_difference(run, dense) if same_loss else {"held_out_loss": None, "held_out_loss_after": None}),
    }


def _loss_difference(run: Run, dense: Run) -> dict[str, Any]:
    theirs = dict(dense.held_out)
    common = [(step, loss - theirs[step]) for step, loss in run.held_out if step > 0 and step in theirs]
    step, difference = common[-1] if common else (None, None)
    finite = difference is not None and math.isfinite(difference)
    return {"held_out_loss": difference if finite else None, "held_out_loss_after": step if finite else None}


def _seconds_per_step(run: Run, stage: int) -> float | None:
    seconds = run.steps.seconds[run.steps.stage == stage][LEFT_OUT:].tolist()
    return median(seconds) if seconds else None


def _model_differs(one: Run, other: Run) -> str:
    """In words, or an empty string; unknown models count as different."""
    if one.config is None or other.config is None:
        return "not known"
    return in_words({"model": one.settings("model")}, {"model": other.settings("model")})


def _differs(one: Run, other: Run, section: str, keys: Sequence[str]) -> str:
    usual = RunConfig().model_dump(mode="json")[section]  # for a run from before a setting was there
    chosen = [{key: run.settings(section).get(key, usual[key]) for key in keys} for run in (one, other)]
    return in_words({section: chosen[0]}, {section: chosen[1]})
