"""The measurement: its arms do what they say, and what they find is put into figures that fit together."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_decoders import build, tokens
from torch import nn
from typer.testing import CliRunner

from estfx.bench import ARMS, BenchFailedError, BenchResult, BenchSettings, bench
from estfx.bench.arms import build_arms
from estfx.bench.meters import memory_of
from estfx.bench.table import print_result
from estfx.cli.main import app
from estfx.settings import SettingsError

TINY = {
    "model": {"name": "llama", "config": {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}},
    "batch_size": 2,
    "seq_len": 16,
    "rounds": 2,
    "warmup": 1,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("estfx.programs.compilation.BACKEND", "eager")
    torch._dynamo.reset()


def arms_of(model: nn.Module, *names: str) -> dict[str, Any]:
    settings = BenchSettings.from_mapping({"arms": ("compiled", *names)})
    return {arm.name: arm for arm in build_arms(model, {"input_ids": tokens()}, settings)}


def loss(arm: Any, number: int = 0) -> torch.Tensor:
    arm.before(number)
    ids = tokens()
    value: torch.Tensor = arm.model(input_ids=ids, labels=ids).loss
    return value


@pytest.mark.sweep(day=1, days=2)
def test_figures_fit_together() -> None:
    result = bench(BenchSettings.from_mapping(TINY))
    by_name = {arm.name: arm for arm in result.arms}
    assert list(by_name) == list(ARMS)
    assert not any(arm.failed for arm in result.arms), [arm.failed for arm in result.arms]
    assert by_name["compiled"].time_ratio.median == by_name["stage_3"].flops_ratio == 1.0
    assert by_name["stage_1"].flops_ratio < by_name["stage_2"].flops_ratio < by_name["masked"].flops_ratio == 1.0
    for arm in result.arms:
        assert 0 < arm.forward.median < arm.seconds.median < arm.seconds.high * 1.001
        assert arm.seconds.low <= arm.seconds.median
        assert arm.tokens_per_second == pytest.approx(32 / arm.seconds.median)
        assert arm.mfu == pytest.approx(arm.flops / arm.seconds.median / result.peak_flops)
        assert 0 < arm.saved_bytes < arm.peak_bytes
        assert arm.time_per_flops == pytest.approx(arm.time_ratio.median / arm.flops_ratio)
        assert arm.compilations_later == 0
    assert by_name["eager"].compilations == 0 < by_name["compiled"].compilations
    assert BenchResult.model_validate_json(result.model_dump_json()) == result
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as said:
        print_result(console, result)
    assert all(len(line) <= 80 or line.startswith(tuple(ARMS)) for line in said.get().splitlines())
    assert "…" not in said.get()


def test_all_arms_share_the_parameters() -> None:
    model = build("gpt2").train()
    arms = arms_of(model, "eager", "stage_2", "layer_drop")
    own = {parameter.data_ptr() for parameter in model.parameters()}
    for arm in arms.values():
        assert {parameter.data_ptr() for parameter in arm.model.parameters()} == own


@pytest.mark.sweep(day=1, days=2)
def test_the_originals_compute_the_same_and_so_does_a_stage_that_keeps_everything() -> None:
    arms = arms_of(build("gpt2").train(), "eager", "compiled_layers", "checkpointed", "stage_3")
    losses = {name: loss(arm) for name, arm in arms.items()}
    for name, value in losses.items():
        torch.testing.assert_close(value, losses["eager"], msg=name)
        value.backward()


def test_masks_hide_what_a_stage_would_drop() -> None:
    model = build("llama_grouped").train()
    arm = arms_of(model, "masked")["masked"]
    first = loss(arm)
    first.backward()
    (mask,) = arm.model.model.layers[0].of_weight["mlp.down_proj.weight"]
    assert int(mask.sum()) == round(mask.numel() / 2)
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    assert torch.equal((gradient == 0).all(dim=0), mask[0] == 0)
    assert not torch.equal(first, loss(arm, 1))  # others are hidden


def test_layer_drop_passes_layers_over() -> None:
    model = build("gpt2", n_layer=4).train()
    arm = arms_of(model, "layer_drop")["layer_drop"]
    loss(arm).backward()
    reached = {name.split(".")[2] for name, p in model.named_parameters() if ".h." in name and p.grad is not None}
    assert len(reached) == 2


@pytest.mark.sweep(day=1, days=2)
def test_an_arm_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("estfx.bench.arms.checkpoint", broken)
    result = bench(BenchSettings.from_mapping(TINY | {"arms": ("compiled", "checkpointed")}))
    compiled, checkpointed = result.arms
    assert compiled.failed is None
    assert checkpointed.failed == "RuntimeError: no memory left"
    with (console := Console(width=80)).capture() as said:
        print_result(console, result)
    assert "checkpointed: the original, each layer compiled and recomputed" in said.get()
    assert "FAILED: RuntimeError: no memory left" in said.get()


def test_nothing_is_compared_to_an_original_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(BenchFailedError, match=r"compiled original, to which all is compared, does not run: .*no comp"):
        bench(BenchSettings.from_mapping(TINY | {"arms": ("eager", "compiled")}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"arms": ("compiled", "stage_4")}, "unknown arm 'stage_4'; did you mean 'stage_"),
        ({"arms": ("eager",)}, "lack 'compiled'"),
        ({"rounds": 0}, "rounds must be greater than or equal to 1"),
        ({"batch": 8}, "unknown key 'batch'; did you mean 'batch_size'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("'", ".")):
        BenchSettings.from_mapping(values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="finds no GPU"):
        bench(BenchSettings.from_mapping(TINY | {"device": "cuda"}))


def test_the_peak_is_what_tensors_took_at_once() -> None:
    before = torch.ones(1000)

    def work() -> torch.Tensor:
        nonlocal before
        first = torch.ones(2**20)
        del before
        second = first + 1
        del first
        return (second * 2)[:5]  # keeps all of its memory

    found = memory_of(work, torch.device("cpu"))
    assert found is not None
    assert found.peak == pytest.approx(2 * 2**22, abs=8192)  # never three of them
    assert found.left == pytest.approx(2**22, abs=8192)


@pytest.mark.sweep(day=0, days=2)
def test_a_compiled_function_takes_less_at_once() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return (((x + 1) * 2).exp() - 3).sum()

    cpu, x, compiled = torch.device("cpu"), torch.ones(2**20), torch._dynamo.optimize("inductor")(step)
    compiled(x)
    fused, eager = memory_of(lambda: compiled(x), cpu), memory_of(lambda: step(x), cpu)
    assert fused is not None
    assert eager is not None
    assert fused.peak < 2**20 < 2 * 2**22 <= eager.peak


@pytest.mark.sweep(day=0, days=2)
def test_the_command_prints_json(tmp_path: Any) -> None:
    values = [f"{key}={TINY[key]}" for key in ("batch_size", "seq_len", "rounds", "warmup")]
    options = [word for value in values for word in ("--set", value)]
    config = ["--config", "n_layer=1", "--config", "n_embd=32", "--config", "n_head=2"]
    file = tmp_path / "figures.json"
    command = ["bench", "gpt2", *config, *options, "--set", "arms=[compiled, stage_1]", "--out", str(file), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    result = BenchResult.model_validate_json(done.stdout)
    assert result == BenchResult.model_validate_json(file.read_text())
    assert result.settings.model.config["n_embd"] == 32
