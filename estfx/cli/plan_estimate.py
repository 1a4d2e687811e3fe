"""What follows from a plan: hours and cost on some hardware, and a run of `estfx train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from estfx.costs import Plan, hours, peak_of
from estfx.schedules import Schedule
from estfx.settings import SettingsError
from estfx.training import (
    DataSettings,
    ModelSettings,
    RunConfig,
    ScheduleSettings,
    TrainSettings,
    merged_options,
    model_types,
    small_options,
    tokens_of,
)

__all__ = ["ASSUMED_MFU", "Estimate", "estimated", "of_bytes", "run_settings"]

ASSUMED_MFU = 0.4  # of a well-tuned training run of a dense decoder on such GPUs


class Estimate(BaseModel):
    """How long the runs take on some hardware, if every FLOP takes as long as any other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    num_devices: int
    peak_flops: float  # of one device, per second
    mfu: float
    mfu_is: str  # assumed, given, or where it was measured
    hours: float
    hours_whole: float  # of the whole model over all steps
    cost: float | None = None
    cost_whole: float | None = None


def estimated(
    plan: Plan,
    hardware: str,
    num_devices: int,
    mfu: float | None,
    measured: tuple[float, str] | None,
    price: float | None,
) -> Estimate:
    """Hours from the peak of the hardware and the MFU that is given, was measured, or else is assumed."""
    name, peak = peak_of(hardware)
    share, source = measured or ((mfu, "given") if mfu is not None else (ASSUMED_MFU, "assumed"))
    if not 0 < share <= 1:
        raise SettingsError(f"an MFU lies between 0 and 1; {share:g} does not.")
    each = [
        hours(flops, peak, share, num_devices)
        for flops in (
            sum(stage.steps * stage.flops_model for stage in plan.stages),
            plan.whole.steps * plan.whole.flops_model,
        )
    ]
    costs = [None if price is None else price * num_devices * one for one in each]
    return Estimate(
        hardware=name,
        num_devices=num_devices,
        peak_flops=peak,
        mfu=share,
        mfu_is=source,
        hours=each[0],
        hours_whole=each[1],
        cost=costs[0],
        cost_whole=costs[1],
    )


def run_settings(name: str, options: Mapping[str, Any], model: nn.Module, plan: Plan, schedule: Schedule) -> RunConfig:
    """A run of that model, schedule and batch; the rest as by default."""
    assert schedule.total_steps is not None
    config = dict(options)
    if name in model_types():  # of which a run would take a small one, where nothing is said
        small = small_options(name, vocab_size=257, seq_len=plan.seq_len, end_of_text=256)
        planned = {key: getattr(model.config, key) for key in merged_options(name, small, {})}
        if of_bytes(name, options, model):
            planned |= {key: value for key, value in small.items() if key == "vocab_size" or key.endswith("_token_id")}
        config = planned | config
    warmup = min(TrainSettings().warmup_steps, max(1, schedule.total_steps // 10))
    return RunConfig(
        model=ModelSettings(name=name, config=config),
        data=DataSettings(seq_len=plan.seq_len),
        train=TrainSettings(total_steps=schedule.total_steps, batch_size=plan.batch_size, warmup_steps=warmup),
        schedule=ScheduleSettings(
            **{name: value for name, value in schedule if name in ScheduleSettings.model_fields},
        ),
    )


def of_bytes(name: str, options: Mapping[str, Any], model: nn.Module) -> str | None:
    """What to say of a run whose vocabulary is that of bytes, since nobody said which it is; else None."""
    if name not in model_types() or "vocab_size" in options:
        return None
    tokens = tokens_of(DataSettings().tokenizer).vocab_size
    config: Any = model.config
    return (
        f"note: the run reads its text as bytes, so its vocab_size is {tokens}; the figures shown are for "
        f"{config.get_text_config().vocab_size:,}. For others set data.tokenizer and model.config.vocab_size there."
    )
