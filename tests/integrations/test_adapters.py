"""Trainer with PEFT's adapters around an evolving model: as a loop by hand, resumed, and loaded without estfx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from differences import largest_difference
from tiny_trainers import STEPS, Tokens, evolving, gpt2, trainer_of
from torch import nn
from transformers import Trainer

import estfx
from estfx.integrations.transformers import EvolvingCallback

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # peft asks transformers for an attribute by its old name
RATE, ROWS, BREAK = 1e-1, 4, 2


def adapted() -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"], r=4, fan_in_fan_out=True)
    torch.manual_seed(0)
    return peft.get_peft_model(evolving(), config).train()


class InOrder(Trainer):
    def _get_train_sampler(self, *args: Any, **options: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # it has a length


def trained(folder: Path, resume: str | None = None, **options: Any) -> tuple[Any, list[float]]:
    model = adapted()
    defaults = {"learning_rate": RATE, "optim": "sgd", "lr_scheduler_type": "constant", "kind": InOrder}
    trainer = trainer_of(model, folder, EvolvingCallback(), **(defaults | options))
    trainer.train(resume_from_checkpoint=resume)
    return model, [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_losses_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    model, losses = trained(tmp_path)
    hand = adapted()
    inner = estfx.evolving_within(hand)
    optimizer = torch.optim.SGD([p for p in hand.parameters() if p.requires_grad], lr=RATE)
    rows, wanted = Tokens(STEPS * ROWS), []
    for step in range(STEPS):
        inner.set_step(step)
        batch = [rows[step * ROWS + row] for row in range(ROWS)]
        loss = hand(**{name: torch.stack([row[name] for row in batch]) for name in batch[0]}).loss
        loss.backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(loss.item())
    assert largest_difference(losses, wanted) < 2e-6
    for (name, one), (_, other) in zip(model.named_parameters(), hand.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


def test_a_run_resumed_in_its_first_stage_ends_with_the_same_adapters(tmp_path: Path) -> None:
    model, losses = trained(tmp_path, save_strategy="steps", save_steps=BREAK)
    again, rest = trained(tmp_path, str(tmp_path / f"checkpoint-{BREAK}"))
    assert rest[-STEPS + BREAK :] == losses[BREAK:]
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_was_trained_is_loaded_without_estfx(tmp_path: Path) -> None:
    model, _ = trained(tmp_path / "run")
    model.save_pretrained(tmp_path / "adapters")
    plain = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "adapters").eval()
    ids = torch.stack([Tokens()[row]["input_ids"] for row in range(2)])
    whole = model.eval()(input_ids=ids).logits
    assert torch.equal(plain(input_ids=ids).logits, whole)
    assert not torch.equal(gpt2().eval()(input_ids=ids).logits, whole)
    merged = plain.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(merged).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, whole, rtol=1e-4, atol=1e-5)
