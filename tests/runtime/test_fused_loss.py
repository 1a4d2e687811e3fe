"""The loss fused with the LM head is the loss, and logits are still there for whoever asks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_decoders import VOCABULARY, build, tokens
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.runtime import fused_loss
from estfx.runtime.fused_loss import DeferredLogits
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

pytestmark = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has no linear_cross_entropy")
SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10)])
IDS = tokens(batch=4, length=32)
LABELS = torch.where(torch.arange(32) % 5 == 0, -100, IDS)


def both(name: str, **values: Any) -> tuple[Any, Any]:
    model = build(name, **values)
    twin = copy.deepcopy(model)
    made = (
        estfx.transform(each, SCHEDULE, compile=False, verify=False, fuse_loss=fuses)
        for each, fuses in ((model, True), (twin, False))
    )
    return next(made), next(made)


def trained(model: Any, step: int, **batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.set_step(step)
    model.zero_grad()
    loss = model(input_ids=IDS, **batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("step", [0, 10])
@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": torch.tensor(50)}], ids=["mean", "sum"])
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "gptj"])  # tied, untied, with a bias
def test_the_loss_and_its_gradients_are_equal(name: str, more: dict[str, Any], step: int) -> None:
    fused, plain = both(name)
    (loss, grads), (want, want_grads) = (trained(each, step, labels=LABELS, **more) for each in (fused, plain))
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-7)
    assert grads.keys() == want_grads.keys()
    for path, grad in grads.items():
        torch.testing.assert_close(grad, want_grads[path], rtol=1e-4, atol=1e-6, msg=path)


def test_in_bfloat16_it_is_as_near_to_the_exact_loss() -> None:
    fused, plain = both("llama_grouped")
    exact, _ = trained(copy.deepcopy(plain).double(), 10, labels=LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (loss, _), (usual, _) = (trained(each, 10, labels=LABELS) for each in (fused, plain))
    assert abs(loss - exact) <= abs(usual - exact) + 2e-3
    assert abs(loss - exact) < 0.01


def test_the_logits_are_not_computed_for_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, _ = both("gpt2")
    fused.set_step(0)
    seen: list[tuple[int, ...]] = []
    linear = F.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr(fused_loss.F, "linear", watched)
    result = fused(input_ids=IDS, labels=LABELS)
    result.loss.backward()
    assert (VOCABULARY, fused.config.n_embd) not in seen
    assert isinstance(result.logits, DeferredLogits)
    assert result.logits.shape == (4, 32, VOCABULARY)
    assert (result.logits.dtype, result.logits.ndim) == (torch.float32, 3)
    assert (VOCABULARY, fused.config.n_embd) not in seen


def test_logits_are_there_for_whoever_reads_them() -> None:
    fused, plain = both("gpt2")
    fused.set_step(10), plain.set_step(10)
    result, want = (each(input_ids=IDS, labels=LABELS).logits for each in (fused, plain))
    assert torch.equal(result.argmax(dim=-1), want.argmax(dim=-1))
    assert torch.equal(result + 0, want)
    assert torch.equal(result[:, -1], want[:, -1])
    fused.set_step(0)
    assert not isinstance(fused(input_ids=IDS).logits, DeferredLogits)  # without labels there is no loss to fuse
    assert not isinstance(fused.eval()(input_ids=IDS, labels=IDS).logits, DeferredLogits)
    assert "forward" not in vars(fused.get_output_embeddings())


def test_a_model_that_changes_its_logits_has_its_usual_loss() -> None:
    fused, plain = both("gemma2", final_logit_softcapping=5.0)
    (loss, _), (want, _) = (trained(each, 10, labels=LABELS) for each in (fused, plain))
    assert torch.equal(loss, want)


def test_a_model_of_ones_own_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    with pytest.raises(estfx.EstfxError, match=r"whose LM head is one nn.Linear; `Own` is none"):
        estfx.transform(Own(), SCHEDULE, fuse_loss=True)


def test_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fused_loss.F, "linear_cross_entropy")
    with pytest.raises(estfx.EstfxError, match=r"linear_cross_entropy, which torch .* has not; torch 2.13 has it"):
        estfx.transform(build("gpt2"), SCHEDULE, fuse_loss=True)
