"""What a mounted layer does beside running its graph: it scales its update, is passed over, and fills caches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Mlp, Residual, Stack, stream
from tiny_decoders import build, tokens
from torch import nn
from transformers import DynamicCache

import estfx
from estfx.runtime.layer_mount import Mount, in_backward
from estfx.schedules import Schedule, Stage
from estfx.stand_ins import CHECKPOINTING

HALF_THEN_WHOLE = (Stage(start=0, layers=0.5), Stage(start=4))
SCALED = Schedule(stages=HALF_THEN_WHOLE, skipped_layers="inverse_keep")


class InPlace(Mlp):
    """Writes its update into the stream that it was given."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.add_(super().forward(x_BTD.clone()))


class Copied(Stack):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD.clone())


@pytest.mark.parametrize("layer", [Residual, InPlace])
def test_updates_are_scaled_while_layers_are_skipped_and_no_longer(layer: type[Mlp]) -> None:
    model: Any = Copied(*(layer() for _ in range(4)))
    twin = copy.deepcopy(model)
    estfx.transform(model, SCALED, example_inputs=(stream(),), compile=False)
    for step, factor in ((0, 2.0), (1, 2.0), (4, 1.0)):
        model.set_step(step)
        want = stream()
        for name, runs in model.subnetwork.layers.items():
            want = want + factor * runs * Mlp.forward(twin.get_submodule(name), want)
        torch.testing.assert_close(model(stream()), want)


def test_layers_that_always_run_are_neither_scaled_nor_counted() -> None:
    model: Any = Stack(Mlp(), *(Residual() for _ in range(4)))
    twin = copy.deepcopy(model)
    estfx.transform(model, SCALED, example_inputs=(stream(),), compile=False)
    assert [layer.droppable for layer in model.report.layers] == [False, True, True, True, True]
    model.set_step(0)
    want = Mlp.forward(twin.layers[0], stream())
    for name, runs in list(model.subnetwork.layers.items())[1:]:
        want = want + 2.0 * runs * Mlp.forward(twin.get_submodule(name), want)
    torch.testing.assert_close(model(stream()), want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_runs_is_computed_again_under_activation_checkpointing(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so is memory saved: what equals the original to the bit may as well not be checkpointed at all."""
    again: list[tuple[str, bool]] = []
    own = Mount.run
    monkeypatch.setattr(
        Mount, "run", lambda self, *given: again.append((self.path, in_backward())) or own(self, *given)
    )
    grads = []
    for model, checkpointing in [(evolving()[0], each) for each in (False, True)]:
        if checkpointing:
            enable_checkpointing(model, reentrant)
        model.set_step(0)
        again.clear()
        model(tokens(), labels=tokens()).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    running = [name for name, runs in model.subnetwork.layers.items() if runs]
    assert again == [(name, False) for name in running] + [(name, True) for name in reversed(running)]
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def enable_checkpointing(model: Any, reentrant: bool = False) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def test_checkpointing_that_was_on_stays_on() -> None:
    model = build("gpt2")
    enable_checkpointing(model)
    flags = [vars(module).get(CHECKPOINTING) for module in model.modules()]
    assert any(flags)
    estfx.transform(model, Schedule.est(30), compile=False)
    assert [vars(module).get(CHECKPOINTING) for module in model.modules()] == flags


def test_refusal_of_another_step_between_a_forward_pass_and_its_recomputation() -> None:
    model, _ = evolving()
    enable_checkpointing(model)
    model.set_step(0)
    loss = model(tokens(), labels=tokens()).loss
    model.set_step(1)
    with pytest.raises(estfx.EstfxError, match=r"set_step\(1\) was called between a forward pass of step 0 and its"):
        loss.backward()


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((HIDDEN,), 1.1))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return (x_BTD.to(self.scale.dtype) * self.scale).to(x_BTD.dtype)


class Rounded(Residual):
    """Computes its last product in the dtype of the weight that it is given there."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Last()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.last(Mlp.forward(self, x_BTD))


def test_the_dtype_of_any_weight_may_change() -> None:
    model: Any = Stack(Rounded(), Rounded())
    twin: Any = copy.deepcopy(model)
    estfx.transform(model, Schedule(stages=[Stage(start=0)]), example_inputs=(stream(),), compile=False)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        for each in (model, twin):
            for layer in each.layers:
                layer.last.to(dtype)
        model.set_step(0)
        assert torch.equal(model(stream()), twin(stream()))


def evolving() -> tuple[Any, nn.Module]:
    """A transformed model, and the original."""
    model = build("llama", num_hidden_layers=4)
    twin = copy.deepcopy(model)
    return estfx.transform(model, Schedule(stages=HALF_THEN_WHOLE), compile=False), twin


@pytest.mark.parametrize("step", [0, 4])
def test_a_cache_that_was_asked_for_is_filled_by_every_layer(step: int) -> None:
    model, twin = evolving()
    model.set_step(step)
    ids = tokens()
    got, want = model(ids, use_cache=True), twin(ids, use_cache=True)
    for number in range(4):
        assert got.past_key_values.get_seq_length(number) == ids.shape[1]
    assert torch.equal(got.logits, want.logits)  # nobody could go on from a cache of a part


def test_a_cache_with_something_in_it_is_read() -> None:
    model, twin = evolving()
    model.set_step(4)
    start, rest = tokens(length=5), tokens(length=7, seed=1)
    caches = [DynamicCache(config=model.config) for _ in range(3)]
    for cache in caches:
        twin.model(start, past_key_values=cache, use_cache=True)
    want = twin.model(rest, past_key_values=caches[0], use_cache=True).last_hidden_state
    assert torch.equal(model.model(rest, past_key_values=caches[1], use_cache=True).last_hidden_state, want)
    assert torch.equal(model(rest, past_key_values=caches[2]).logits, twin.lm_head(want))
