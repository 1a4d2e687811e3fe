"""Runs the arms side by side: every round does one step of each, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn
from torch._inductor.utils import fresh_inductor_cache

from estfx.bench.arms import Arm, build_arms
from estfx.bench.meters import Memory, compilations, memory_of, peak_flops, synchronize
from estfx.bench.result import ArmResult, BenchFailedError, BenchResult, Spread
from estfx.bench.settings import REFERENCE, BenchSettings
from estfx.costs import plan as plan_of
from estfx.quiet import quiet_transformers
from estfx.schedules import Schedule
from estfx.settings import SettingsError
from estfx.training import build_model, environment, merged_options, model_types, small_options

__all__ = ["bench"]

VOCABULARY = 8192  # of the small presets
Say = Callable[[str], None]


def bench(settings: BenchSettings, say: Say = lambda line: None) -> BenchResult:
    """Measures every arm; an arm that fails is in the result with the reason. `say` is told what is going on.

    Raises SettingsError if there is no such model or device, BenchFailedError if the compiled original does not run.
    """
    device = _device(settings)
    dtype = getattr(torch, settings.dtype)
    with quiet_transformers():
        torch.manual_seed(settings.seed)
        model = _built(settings).to(device, dtype).train()
        tokens = torch.randint(_vocabulary(model), (settings.batch_size, settings.seq_len), device=device)
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokens.numel():,} tokens a step, {device}")
        arms = build_arms(model, {"input_ids": tokens[:1, : min(17, settings.seq_len)].repeat(3, 1)}, settings)
        flops, whole = _flops(model, settings, arms)
        peak, source = peak_flops(device, dtype)
        with fresh_inductor_cache():  # or what was compiled before would count as quick to compile
            records = _records(model, arms, {"input_ids": tokens, "labels": tokens}, settings, say)
    reference = records[REFERENCE]
    results = [
        _result(name, record, reference, flops[name], whole, tokens.numel(), peak) for name, record in records.items()
    ]
    return BenchResult(
        settings=settings,
        environment=environment(),
        parameters=sum(p.numel() for p in model.parameters()),
        peak_flops=peak,
        peak_flops_source=source,
        arms=results,
    )


def _records(
    model: nn.Module, arms: list[Arm], batch: dict[str, torch.Tensor], settings: BenchSettings, say: Say
) -> dict[str, _Record]:
    """What every arm took: first alone, then in rounds, each of which begins with another arm."""
    device = batch["input_ids"].device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    records = {arm.name: _measured_alone(arm, batch, optimizer, device, settings, say) for arm in arms}
    if (failed := records[REFERENCE].failed) is not None:
        raise BenchFailedError(f"the compiled original, to which all is compared, does not run: {failed}")
    running = [arm for arm in arms if records[arm.name].failed is None]
    for number in range(settings.rounds):
        say(f"round {number + 1} of {settings.rounds}")
        first = number % len(running)
        for arm in running[first:] + running[:first]:
            record = records[arm.name]
            record.steps.append(_step(arm, settings.warmup + 1 + number, batch, optimizer, device))
            record.compilations_later += record.steps[-1].compilations
    return records


@dataclass
class _Step:
    forward: float
    backward: float
    optimizer: float
    compilations: int

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass
class _Record:
    failed: str | None = None
    first: list[_Step] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    step_memory: Memory | None = None
    forward_memory: Memory | None = None
    compilations_later: int = 0


def _device(settings: BenchSettings) -> torch.device:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device cuda was asked for, but torch finds no GPU here; use device=cpu.")
    name = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _built(settings: BenchSettings) -> nn.Module:
    options = dict(settings.model.config)
    if settings.model.name in model_types():
        small = small_options(
            settings.model.name, vocab_size=VOCABULARY, seq_len=settings.seq_len, end_of_text=VOCABULARY - 1
        )
        options = merged_options(settings.model.name, small, options)
    model = build_model(settings.model.name, options).model
    if not hasattr(model, "config"):
        raise SettingsError(f"{settings.model.name} is no model of transformers, which bench needs for its loss.")
    return model


def _vocabulary(model: Any) -> int:
    size: int = model.config.get_text_config().vocab_size
    return size


def _flops(model: nn.Module, settings: BenchSettings, arms: list[Arm]) -> tuple[dict[str, float], float]:
    """Of one step of each arm, by its name, and of the whole model."""
    stages = [arm.stage.model_copy(update={"start": start}) for start, arm in enumerate(arms)]
    plan = plan_of(
        model,
        Schedule(stages=stages, total_steps=len(stages)),
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
    )
    return {arm.name: stage.flops_model for arm, stage in zip(arms, plan.stages, strict=True)}, plan.whole.flops_model


def _measured_alone(
    arm: Arm,
    batch: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    settings: BenchSettings,
    say: Say,
) -> _Record:
    """The first steps, in which it compiles, and a step and a forward pass in which memory is watched."""
    record = _Record()
    say(f"{arm.name}: first steps")
    try:
        for number in range(settings.warmup):
            record.first.append(_step(arm, number, batch, optimizer, device))
        record.step_memory = memory_of(lambda: _step(arm, settings.warmup, batch, optimizer, device), device)
        record.forward_memory = memory_of(lambda: arm.model(**batch).loss, device)
    except Exception as error:  # whatever torch.compile, or the device's memory, raises
        record.failed = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        say(f"{arm.name} failed: {record.failed}")
    optimizer.zero_grad()
    return record


def _step(
    arm: Arm, number: int, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> _Step:
    graphs = compilations()
    synchronize(device)
    start = time.perf_counter()
    arm.before(number)
    loss = arm.model(**batch).loss
    synchronize(device)
    forward = time.perf_counter()
    loss.backward()
    synchronize(device)
    backward = time.perf_counter()
    optimizer.step()
    synchronize(device)
    end = time.perf_counter()
    optimizer.zero_grad()
    return _Step(forward - start, backward - forward, end - backward, compilations() - graphs)


def _spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return Spread(median=median(ordered), low=ordered[0], high=ordered[-1])


def _result(
    name: str, record: _Record, reference: _Record, flops: float, whole: float, tokens: int, peak: float
) -> ArmResult:
    if record.failed is not None:
        return ArmResult(name=name, failed=record.failed)
    seconds = _spread(step.seconds for step in record.steps)
    ratio = _spread(own.seconds / its.seconds for own, its in zip(record.steps, reference.steps, strict=True))
    return ArmResult(
        name=name,
        seconds=seconds,
        forward=_spread(step.forward for step in record.steps),
        backward=_spread(step.backward for step in record.steps),
        optimizer=_spread(step.optimizer for step in record.steps),
        time_ratio=ratio,
        flops=flops,
        flops_ratio=flops / whole,
        time_per_flops=ratio.median / (flops / whole),
        tokens_per_second=tokens / seconds.median,
        mfu=flops / seconds.median / peak,
        peak_bytes=None if record.step_memory is None else record.step_memory.peak,
        saved_bytes=None if record.forward_memory is None else record.forward_memory.left,
        compile_seconds=max(0.0, sum(step.seconds for step in record.first) - len(record.first) * seconds.median),
        compilations=sum(step.compilations for step in record.first),
        compilations_later=record.compilations_later,
    )
