"""Lightning's callback: a step is one of the model's optimizer, however Lightning counts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from differences import largest_difference
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny_decoders import build, tokens
from torch import nn
from torch.utils.data import DataLoader

import estfx
from estfx.integrations.lightning import EvolvingCallback
from estfx.schedules import Schedule, Stage

pytestmark = pytest.mark.filterwarnings("ignore")  # of the machine, and of few workers
STAGES = [Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=3, neurons=0.5), Stage(start=5)]
SCHEDULE = Schedule(stages=STAGES, total_steps=6)
BATCHES = [tokens(batch=2, seed=seed) for seed in range(12)]


class Module(lightning.LightningModule):
    def __init__(self, schedule: Schedule | None = SCHEDULE) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = build("gpt2")
        self.model: Any = model if schedule is None else estfx.transform(model, schedule, compile=False)
        self.probe = nn.Linear(1, 1)
        self.seen: list[tuple[int, int]] = []  # the model's step, and the stage
        self.losses: list[torch.Tensor] = []

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, estfx.EvolvingModel):
            self.seen.append((self.model.step, self.model.stage_index))
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.detach())
        return loss

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.loss(BATCHES[self.model.step])  # a loader begins anew when a run is resumed

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


class Manual(Module):
    """With two optimizers, both of which step at every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch) + self.probe(torch.ones(1, 1)).square().sum())
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()

    def configure_optimizers(self) -> Any:
        own = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        return [torch.optim.SGD(self.probe.parameters(), lr=1e-2), own]


def fit(module: Module, callback: Any = None, resume: Path | None = None, **options: Any) -> Any:
    callback = EvolvingCallback() if callback is None else callback
    options = {"max_steps": 6, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *options.pop("callbacks", ())],
        **options,
    )
    trainer.fit(module, DataLoader(BATCHES, batch_size=None), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer


@pytest.fixture(scope="module")
def by_hand() -> list[torch.Tensor]:
    module = Module()
    optimizer = module.configure_optimizers()
    for step in range(6):
        module.model.set_step(step)
        module.loss(BATCHES[step]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.losses


def test_losses_are_those_of_a_loop_by_hand(by_hand: list[torch.Tensor]) -> None:
    module = Module()
    fit(module)
    assert module.seen == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]
    assert largest_difference([x.item() for x in module.losses], [x.item() for x in by_hand]) == 0
    plain = build("gpt2")
    plain.load_state_dict(module.model.state_dict())
    assert all(map(torch.equal, plain.parameters(), module.model.parameters()))


def test_micro_batches_of_a_step_have_one_subnetwork() -> None:
    module = Module()
    fit(module, accumulate_grad_batches=2)
    assert [step for step, _ in module.seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_of_two_optimizers_only_that_of_the_model_counts(by_hand: list[torch.Tensor]) -> None:
    module = Manual()
    trainer = fit(module, max_steps=12)
    assert trainer.global_step == 12
    assert [step for step, _ in module.seen] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(torch.stack(module.losses), torch.stack(by_hand))


def test_a_resumed_run_ends_as_the_uninterrupted_one(by_hand: list[torch.Tensor], tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=4)
    fit(Module(), max_steps=4, enable_checkpointing=True, callbacks=[saves])
    again = Module()
    fit(again, resume=tmp_path / "last.ckpt")
    assert again.seen == [(4, 1), (5, 2)]
    assert torch.equal(torch.stack(again.losses), torch.stack(by_hand[4:]))
    other = SCHEDULE.model_copy(update={"resample_every": 2})
    with pytest.raises(estfx.EstfxError, match=r"the checkpoint of step 4 was made with something else: .*resample"):
        fit(Module(other), resume=tmp_path / "last.ckpt")
    fit(Module(other), EvolvingCallback(accept_changes=True), resume=tmp_path / "last.ckpt")


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(estfx.EstfxError, match="`Module` is no evolving model, and holds none"):
        fit(Module(None))

    class Forgotten(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.probe.parameters(), lr=0.1)

    with pytest.raises(estfx.EstfxError, match="none of the 1 optimizers of `Forgotten` holds a parameter"):
        fit(Forgotten())


def test_a_run_of_another_length_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="estfx"):
        fit(Module(), max_steps=2)
    assert "Lightning runs for 2 steps, the schedule is made for 6: the run ends in stage 1 of 3" in caplog.text


GROWING = Schedule(stages=STAGES, total_steps=6, resample_every="never", kept_units="as_is")
RANKING = SCHEDULE.model_copy(update={"policy": "weighted_gradient_magnitude", "refresh_every": 1})


class Decaying(Module):
    """Weight decay would wear away what is idle, were it not put back. The gradients are made in a closure."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=5.0)


@pytest.mark.parametrize("schedule", [GROWING, RANKING])
def test_what_watches_the_optimizer_sees_what_it_does_by_hand(schedule: Schedule) -> None:
    hand, module = Decaying(schedule), Decaying(schedule)
    optimizer = hand.configure_optimizers()
    for step in range(6):
        optimizer.zero_grad()
        hand.model.set_step(step)
        hand.loss(BATCHES[step]).backward()
        optimizer.step()
    fit(module)
    assert torch.equal(torch.stack(module.losses), torch.stack(hand.losses))
    for (name, one), other in zip(module.model.named_parameters(), hand.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    learnt, want = module.model.selection.state_dict(), hand.model.selection.state_dict()
    assert {key: str(value) for key, value in learnt.items()} == {key: str(value) for key, value in want.items()}


def test_averaged_weights_are_those_by_hand() -> None:
    """Lightning's own callback, which swaps them in to validate and at the end."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    seen: list[dict[str, torch.Tensor]] = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append({n: p.detach().clone() for n, p in pl_module.model.named_parameters()})

    module = Module()
    fit(module, callbacks=[Looks(), averaging.EMAWeightAveraging(decay=0.8)])
    by_hand = seen[0]
    for now in seen[1:]:
        by_hand = {name: 0.8 * by_hand[name] + 0.2 * parameter for name, parameter in now.items()}
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(parameter, by_hand[name], rtol=0, atol=1e-6)
