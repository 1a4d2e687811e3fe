"""Schedules of a run whose length is not known when the model is transformed: who tells it, and what it then is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoders import build, tokens
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import estfx
from estfx.errors import EstfxError, ScheduleError
from estfx.integrations.lightning import EvolvingCallback as LightningCallback
from estfx.integrations.transformers import EvolvingCallback
from estfx.schedules.preset_by_name import PRESETS
from estfx.schedules.schedule import Schedule

ROWS = [{"input_ids": row, "labels": row} for row in tokens(batch=20, seed=0)]


def evolving(schedule: Schedule | None = None) -> Any:
    return estfx.transform(build("gpt2"), schedule or Schedule.est(), compile=False)


@given(preset=st.sampled_from(PRESETS), total=st.integers(20, 200_000))
def test_over_a_number_of_steps_it_is_the_schedule_of_that_number(preset: str, total: int) -> None:
    make = getattr(Schedule, preset)
    over, direct = make().over(total), make(total)
    assert over.model_copy(update={"stages": direct.stages}) == direct
    for one, other in zip(over.stages, direct.stages, strict=True):
        assert abs(one.start - other.start) <= 1  # rounded in another place
        assert one.model_copy(update={"start": 0}) == other.model_copy(update={"start": 0})


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ScheduleError, match="is made for 100 steps already"):
        Schedule.est(100).over(10)
    with pytest.raises(ScheduleError, match="3 steps are too few: the 3 stages would start at 0, 0, 1"):
        Schedule.est().over(3)
    with pytest.raises(ScheduleError, match=r"shares of a run whose length is not known; say it: schedule\.over"):
        estfx.plan(build("gpt2"), Schedule.est(), batch_size=1, seq_len=8)


def test_it_prints_and_is_stored_as_what_it_is(tmp_path: Path) -> None:
    text = str(Schedule.est())
    assert text.startswith("3 stages, in shares of a run whose length is not known yet")
    assert "0.1333" in text
    Schedule.est().to_yaml(tmp_path / "est.yaml")
    assert Schedule.from_yaml(tmp_path / "est.yaml") == Schedule.est()
    pytest.importorskip("matplotlib")
    assert Schedule.est().plot().axes[0].get_xlabel() == "share of the run"


def test_a_loop_has_to_say_it() -> None:
    model = evolving().train()
    with pytest.raises(ScheduleError, match=r"call model\.set_total_steps\(n\) before .*Schedule\.est\(n\)"):
        model.set_step(0)
    model.set_total_steps(15)
    assert model.schedule == Schedule.est(15)
    whole = evolving(Schedule.est(15)).train()
    for step in range(15):
        for each in (model, whole):
            each.set_step(step)
        assert model.stage_index == whole.stage_index
        assert str(model.subnetwork) == str(whole.subnetwork)
    model.set_total_steps(20)  # for another run
    assert model.schedule == Schedule.est(20)
    with pytest.raises(ScheduleError, match="is made for 15 steps already"):
        whole.set_total_steps(20)


def test_copies_and_pickles_know_it_too() -> None:
    model = evolving(Schedule.compound())
    model.set_total_steps(30)
    again: Any = pickle.loads(pickle.dumps(model))
    twin = copy.deepcopy(model)
    assert twin.schedule == again.schedule == Schedule.compound(30)
    for each in (again, twin):
        each.set_total_steps(40)
        assert each.schedule == Schedule.compound(40)
    assert model.schedule == Schedule.compound(30)
    known: Any = pickle.loads(pickle.dumps(evolving(Schedule.compound())))
    assert known.schedule == Schedule.compound()


def test_before_it_is_known_what_joins_can_be_made_zero_and_be_warmed_up() -> None:
    model, known = evolving(Schedule.growing()), evolving(Schedule.growing(40))
    assert model.zero_joining() == known.zero_joining() > 0
    for one, other in zip(model.parameters(), known.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("length", "steps"), [({"num_train_epochs": 3}, 15), ({"max_steps": 8}, 8)])
def test_trainer_says_it(tmp_path: Path, length: dict[str, Any], steps: int) -> None:
    model = evolving()
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **length,
    )
    plan = estfx.plan(build("gpt2"), Schedule.est(100), batch_size=4, seq_len=12)
    callback = EvolvingCallback(plan)
    trainer = Trainer(model=model, args=arguments, train_dataset=ROWS, callbacks=[callback])  # type: ignore[arg-type]
    trainer.train()
    assert model.schedule == Schedule.est(steps)
    assert model.step == steps - 1
    stored: Any = callback.state()["args"]["plan"]
    assert [stage["start"] for stage in stored["stages"]] == [stage.start for stage in Schedule.est(steps).stages]
    assert stored["whole"]["stop"] == steps
    trainer.args.max_steps = 21  # another run of it
    trainer.train()
    assert model.schedule == Schedule.est(21)
    stored = callback.state()["args"]["plan"]
    assert stored["whole"]["stop"] == 21
    model.set_total_steps(40)  # what the user says is not overwritten
    trainer.train()
    assert model.schedule == Schedule.est(40)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = evolving()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=1e-3)


def fit(module: Module, data: Any, **options: Any) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback()],
        **options,
    )
    trainer.fit(module, data)


@pytest.mark.filterwarnings("ignore")  # of the machine, and of few workers
def test_lightning_says_it() -> None:
    module = Module()
    fit(module, DataLoader(ROWS, batch_size=4), max_epochs=3)  # type: ignore[arg-type]
    assert module.model.schedule == Schedule.est(15)
    assert module.model.step == 14
    fit(module, DataLoader(ROWS, batch_size=4), max_epochs=4)  # type: ignore[arg-type]
    assert module.model.schedule == Schedule.est(20)


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(ROWS)


@pytest.mark.filterwarnings("ignore")
def test_lightning_may_not_know_it() -> None:
    with pytest.raises(EstfxError, match="Lightning does not know how long that is: give the Trainer max_steps"):
        fit(Module(), DataLoader(Endless(), batch_size=4), max_epochs=3)
