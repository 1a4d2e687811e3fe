import functools
import json
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.training_args import ParallelMode

import estfx
from estfx.integrations.transformers import EvolvingCallback
from estfx.schedules import Schedule, Stage

TOTAL_STEPS = 6
SKIPPING = Schedule(stages=[Stage(start=0, layers=0.5), Stage(start=3)], total_steps=TOTAL_STEPS)


class Tokens(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (torch.arange(8) * 3 + index) % 32
        return {"input_ids": tokens, "labels": tokens}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )


def trainer_of(model, folder, callback, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=TOTAL_STEPS,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Tokens(), callbacks=[callback])


@pytest.fixture
def evolving():
    return estfx.transform(gpt2(), estfx.Schedule.est(TOTAL_STEPS), compile=False)


def test_the_model_is_told_every_step_once_per_optimizer_step(evolving, tmp_path, monkeypatch):
    told = []
    set_step = type(evolving).set_step
    monkeypatch.setattr(type(evolving), "set_step", lambda self, step: (told.append(step), set_step(self, step))[1])
    trainer_of(evolving, tmp_path, EvolvingCallback(), gradient_accumulation_steps=2).train()
    assert told == list(range(TOTAL_STEPS))


def test_the_logs_say_what_was_at_work(evolving, tmp_path):
    plan = estfx.plan(gpt2(), estfx.Schedule.est(TOTAL_STEPS), batch_size=4, seq_len=8)
    trainer = trainer_of(evolving, tmp_path, EvolvingCallback(plan))
    trainer.train()
    steps = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["estfx/stage"] for log in steps] == [1, 2, 2, 3, 3, 3]
    assert [log["estfx/layers"] for log in steps] == [1, 2, 2, 2, 2, 2]
    assert [log["estfx/heads"] for log in steps] == [1, 2, 2, 4, 4, 4]
    assert steps[0]["estfx/flops"] == plan.stages[0].flops_model
    assert steps[-1]["estfx/flops"] == plan.flops_until(TOTAL_STEPS)
    assert steps[-1]["estfx/flops_saved"] == pytest.approx(plan.saving_model)


def test_without_a_plan_no_flops_are_claimed(evolving, tmp_path):
    trainer = trainer_of(evolving, tmp_path, EvolvingCallback())
    trainer.train()
    assert not any("flops" in key for log in trainer.state.log_history for key in log if key.startswith("estfx/"))


def test_a_model_that_was_not_transformed_is_refused(tmp_path):
    with pytest.raises(
        estfx.EstfxError, match=r"`GPT2LMHeadModel` is no evolving model, and holds none: call `estfx\.transform"
    ):
        trainer_of(gpt2(), tmp_path, EvolvingCallback()).train()


def test_a_wrapped_model_is_found(evolving):
    from types import SimpleNamespace

    wrapped = nn.DataParallel(evolving) if not torch.cuda.is_available() else evolving
    EvolvingCallback().on_step_begin(None, SimpleNamespace(global_step=2), None, model=wrapped)
    assert evolving.stage_index == 1


def test_the_callback_can_be_made_again_from_its_state(evolving, tmp_path):
    plan = estfx.plan(gpt2(), estfx.Schedule.est(TOTAL_STEPS), batch_size=4, seq_len=8)
    callback = EvolvingCallback(plan)
    trainer_of(evolving, tmp_path, callback).train()
    state = json.loads(json.dumps(callback.state()))
    assert EvolvingCallback.from_state(state).state() == callback.state()


@pytest.mark.sweep(day=1, days=2)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an attribute by its old name
def test_the_model_is_found_within_adapters(evolving, tmp_path):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        evolving, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_fc"], r=2, fan_in_fan_out=True)
    )
    assert estfx.evolving_within(wrapped) is evolving
    trainer = trainer_of(wrapped, tmp_path, EvolvingCallback())
    trainer.train()
    first, *_, last = (line["estfx/neurons"] for line in trainer.state.log_history if "loss" in line)
    assert (first, last) == (32, 128)  # one of two layers at half its width, and all of it
    assert trainer.state.total_flos > 0


def test_wrappers_without_a_model_or_with_two_are_refused(evolving):
    with pytest.raises(estfx.EstfxError, match="`GPT2LMHeadModel` is no evolving model, and holds none"):
        estfx.evolving_within(gpt2())
    two = nn.ModuleList([evolving, estfx.transform(gpt2(), estfx.Schedule.est(TOTAL_STEPS), compile=False)])
    with pytest.raises(estfx.EstfxError, match=r"holds 2 evolving models \(0, 1\). Pass the one that you mean"):
        estfx.evolving_within(two)
    assert estfx.evolving_within(torch.compile(evolving, backend="eager")) is evolving


@pytest.mark.parametrize(("asked", "checkpointing"), [(False, False), (None, True)])
def test_ddp_that_would_wait_for_skipped_layers_is_refused(asked, checkpointing, tmp_path):
    model = estfx.transform(gpt2(), SKIPPING, compile=False)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    callback = EvolvingCallback()
    trainer = trainer_of(model, tmp_path, callback, ddp_find_unused_parameters=asked)
    begin = functools.partial(callback.on_train_begin, state=trainer.state, control=trainer.control, model=model)
    trainer.state.max_steps = TOTAL_STEPS
    begin(trainer.args)  # of one process
    with mock.patch.object(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED):
        with pytest.raises(estfx.EstfxError, match=r"Pass TrainingArguments\(ddp_find_unused_parameters=True\)"):
            begin(trainer.args)
        trainer.args.ddp_find_unused_parameters = True
        begin(trainer.args)
