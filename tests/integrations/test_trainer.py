"""What Trainer can be told to do, done with an evolving model."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from differences import largest_difference
from tiny_trainers import SCHEDULE, STEPS, WHOLE, Tokens, evolving, gpt2, trainer_of
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import estfx
from estfx.integrations.transformers import EvolvingCallback
from estfx.runtime.model_state import numbers_left_out
from estfx.schedules.schedule import Schedule


class StopsAt(TrainerCallback):
    """As a run that is killed: its learning rates are those of the whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def losses(trainer: Trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def trained(folder: Path, model: Any = None, **options: Any) -> tuple[Trainer, list[float]]:
    trainer = trainer_of(evolving() if model is None else model, folder, **options)
    trainer.train()
    return trainer, losses(trainer)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_with_everything_kept_the_losses_are_those_without_estfx(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", gpt2())[1]
    assert trained(tmp_path / "whole", evolving(WHOLE))[1] == plain
    assert trained(tmp_path / "evolving")[1] != plain


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, tmp_path: Path) -> None:
    checkpointing = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    assert trained(tmp_path / "one", **checkpointing)[1] == trained(tmp_path / "two")[1]


def test_micro_batches_of_a_step_train_one_subnetwork(tmp_path: Path) -> None:
    whole_batches = trained(tmp_path / "one")[1]
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert trained(tmp_path / "two", **parts)[1] == pytest.approx(whole_batches, rel=1e-4)


def test_autocast_to_bfloat16(tmp_path: Path) -> None:
    full = trained(tmp_path / "full")[1]
    low = trained(tmp_path / "low", bf16=True)[1]
    assert low == pytest.approx(full, rel=0.05)
    assert low != full


@pytest.mark.sweep(day=2, days=3)
def test_torch_compile_around_all(tmp_path: Path) -> None:
    torch._dynamo.reset()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = trained(tmp_path / "compiled", max_steps=7, **options)[1]
    assert compiled == pytest.approx(trained(tmp_path / "plain", max_steps=7)[1], rel=1e-4)


def test_evaluation_during_training_is_of_the_whole_model(tmp_path: Path) -> None:
    class Compares(TrainerCallback):
        compared = 0

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            whole = estfx.restore(copy.deepcopy(kwargs["model"])).eval()
            batch = [Tokens()[index]["input_ids"] for index in range(8)]
            halves = (torch.stack(batch[:4]), torch.stack(batch[4:]))
            with torch.no_grad():
                want = sum(whole(input_ids=ids, labels=ids).loss.item() for ids in halves) / 2
            assert kwargs["metrics"]["eval_loss"] == pytest.approx(want, rel=1e-5)
            self.compared += 1

    compares = Compares()
    trainer = trainer_of(evolving(), tmp_path, compares, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert compares.compared >= 4
    assert losses(trainer) == trained(tmp_path / "without")[1]


def test_several_epochs(tmp_path: Path) -> None:
    model = evolving()
    trainer, _ = trained(tmp_path, model, rows=12, max_steps=-1, num_train_epochs=3)
    assert (trainer.state.global_step, trainer.state.epoch) == (STEPS, 3)
    assert [log["estfx/stage"] for log in trainer.state.log_history if "loss" in log] == [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("at", [2, 4, 8])
def test_a_resumed_run_ends_with_the_same_weights(at: int, tmp_path: Path) -> None:
    dropout = {"resid_pdrop": 0.1}  # random numbers must go on where they were, too
    plan = estfx.plan(gpt2(), SCHEDULE, batch_size=4, seq_len=12)
    whole = trainer_of(evolving(**dropout), tmp_path / "whole", EvolvingCallback(plan))
    whole.train()

    saving = {"save_strategy": "steps", "save_steps": at}
    trainer_of(evolving(**dropout), tmp_path / "run", StopsAt(at), EvolvingCallback(plan), **saving).train()
    torch.manual_seed(77)
    resumed = trainer_of(evolving(**dropout), tmp_path / "run", EvolvingCallback(plan), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    want = weights(whole.model)
    assert all(torch.equal(weight, want[name]) for name, weight in weights(resumed.model).items())
    assert resumed.state.total_flos == whole.state.total_flos
    both = [[log for log in each.state.log_history if "loss" in log] for each in (whole, resumed)]
    assert [log["estfx/flops"] for log in both[0]] == [log["estfx/flops"] for log in both[1]]


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_ranks_units_as_it_would_have(at: int, tmp_path: Path) -> None:
    ranking = SCHEDULE.model_copy(update={"policy": "weighted_gradient_magnitude", "refresh_every": 3})
    whole = trainer_of(evolving(ranking), tmp_path / "whole")
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": at}
    trainer_of(evolving(ranking), tmp_path / "run", StopsAt(at), **saving).train()
    resumed = trainer_of(evolving(ranking), tmp_path / "run", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{at}"))
    assert weights(resumed.model).keys() == weights(whole.model).keys()
    models: list[Any] = [whole.model, resumed.model]
    want, got = (model.selection.state_dict() for model in models)
    assert all(torch.equal(want[name], got[name]) for name in ("mean", "count", "scores"))
    state = tmp_path / "run" / f"checkpoint-{at}" / "trainer_state.json"
    stored = json.loads(state.read_text())
    stored["stateful_callbacks"]["EvolvingCallback"]["attributes"]["selection"] = None
    state.write_text(json.dumps(stored))
    with pytest.raises(estfx.EstfxError, match=f"checkpoint of step {at} cannot be gone on from: .*ranks nothing"):
        trainer_of(evolving(ranking), tmp_path / "run").train(resume_from_checkpoint=str(state.parent))
    accepting = trainer_of(evolving(ranking), tmp_path / "run", EvolvingCallback(accept_changes=True))
    accepting.train(resume_from_checkpoint=str(state.parent))


def test_the_optimizer_forgets_at_the_beginning_of_a_stage(tmp_path: Path) -> None:
    ages: list[float] = []

    class Looks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps = [each["step"] for each in kwargs["optimizer"].state.values()]
            ages.append(float(max(steps)))

    trainer_of(evolving(), tmp_path, EvolvingCallback(reset_optimizer=True), Looks()).train()
    assert ages == [1, 2, 3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        (
            {"schedule": Schedule(stages=SCHEDULE.stages[:2], total_steps=STEPS)},
            "schedule.stages: there were 3, now there are 2; schedule.stage 3 is gone: ",
        ),
        (
            {"schedule": SCHEDULE.model_copy(update={"policy": "window"})},
            "schedule.policy was random, is window",
        ),
        ({"n_inner": 80}, r"layers\.transformer\.h\.0\.neurons was 160, is 80"),
    ],
)
def test_resuming_with_something_else_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer_of(evolving(), tmp_path, save_strategy="steps", save_steps=4, max_steps=4).train()
    if "n_inner" in changed:  # Trainer itself finds other sizes; here it is asked whether estfx does
        state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
        layers = state["stateful_callbacks"]["EvolvingCallback"]["attributes"]["made_with"]["layers"]
        trainer = trainer_of(evolving(), tmp_path)
        trainer.state.global_step = 4
        for layer in layers.values():
            layer["neurons"] = 160
        callback = EvolvingCallback()
        trainer.state.stateful_callbacks = state["stateful_callbacks"]
        with pytest.raises(estfx.EstfxError, match=said):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=evolving(**changed))
        return
    with pytest.raises(estfx.EstfxError, match=f"checkpoint of step 4 was made with something else: .*{said}"):
        trainer_of(evolving(**changed), tmp_path).train(resume_from_checkpoint=True)
    accepting = trainer_of(evolving(**changed), tmp_path, EvolvingCallback(accept_changes=True))
    accepting.train(resume_from_checkpoint=True)
    assert accepting.state.global_step == STEPS


def test_a_checkpoint_from_before_a_schedule_could_say_more_is_resumed(tmp_path: Path) -> None:
    trainer_of(evolving(), tmp_path, StopsAt(4), save_strategy="steps", save_steps=4).train()
    file = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    for name in ("ranking", "refresh_every", "exploration"):
        del state["stateful_callbacks"]["EvolvingCallback"]["attributes"]["made_with"]["schedule"][name]
    file.write_text(json.dumps(state))
    trainer = trainer_of(evolving(), tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    strategy = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(evolving(), tmp_path, **strategy, **best)
    trainer.train()
    evaluations = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(evaluations), rel=1e-6)
    assert isinstance(trainer.model, estfx.EvolvingModel)


def test_early_stopping(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}  # it falls
    strategy = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(evolving(), tmp_path, EarlyStoppingCallback(2), **strategy, **best)
    trainer.train()
    assert trainer.state.global_step < STEPS


def test_a_tracker_is_told_what_is_at_work(tmp_path: Path) -> None:
    class Tracker(TrainerCallback):
        def __init__(self) -> None:
            self.told: list[dict[str, Any]] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.told.append(dict(kwargs["logs"]))

    tracker = Tracker()
    trainer_of(evolving(), tmp_path, EvolvingCallback(), tracker).train()
    assert [told["estfx/stage"] for told in tracker.told if "loss" in told] == [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_total_flos_counts_what_was_at_work(accumulation: int, tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, gradient_accumulation_steps=accumulation)
    whole, _ = trained(tmp_path / "whole", evolving(WHOLE), gradient_accumulation_steps=accumulation)
    numbers = whole.model.num_parameters(exclude_embeddings=True)
    tokens = 4 * 12 * accumulation
    assert whole.state.total_flos == 6 * tokens * STEPS * numbers
    model = evolving()
    left = 0
    for step in range(STEPS):
        model.set_step(step)
        left += numbers_left_out(model)
    assert trainer.state.total_flos == 6 * tokens * (STEPS * numbers - left)


def test_what_is_left_out_is_what_the_subnetwork_has_not() -> None:
    model = evolving()
    for step in (0, 3, 6):
        model.set_step(step)
        kept = model.subnetwork
        narrowed = kept.parameters()
        left = 0
        for path, parameter in model.named_parameters():
            runs = next((runs for layer, runs in kept.layers.items() if path.startswith(f"{layer}.")), True)
            size = list(parameter.shape)
            for dim, indices in narrowed.get(path, {}).items():
                size[dim] = len(indices)
            left += parameter.numel() - (torch.Size(size).numel() if runs else 0)
        assert numbers_left_out(model) == left
        assert (left == 0) == (step == 6)


@pytest.mark.parametrize(("steps", "said"), [(5, "the run ends in stage 2 of 3"), (11, "goes on for 2 steps more")])
def test_another_number_of_steps_is_warned_of(
    steps: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, max_steps=steps)
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("estfx"))
    assert message.startswith(f"Trainer runs for {steps} steps, the schedule is made for {STEPS}: ")
    assert said in message


class OutOfMemory(Trainer):
    """Runs out of memory, as accelerate knows it by its message, with more than four rows."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *args, **options)
        if len(inputs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        return loss


def test_a_batch_size_that_is_found_trains_as_one_that_was_given(tmp_path: Path) -> None:
    finds = {"auto_find_batch_size": True, "per_device_train_batch_size": 5, "kind": OutOfMemory}
    found, given = trained(tmp_path / "found", **finds), trained(tmp_path / "given")
    assert found[1] == given[1]
    assert found[0].state.total_flos == given[0].state.total_flos
    model = evolving(Schedule.est())  # of smaller batches an epoch has more steps
    trainer, _ = trained(tmp_path / "epochs", model, rows=24, max_steps=-1, num_train_epochs=3, **finds)
    assert trainer.state.global_step == 18
    assert model.schedule == Schedule.est(18)


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_losses_are_those_of_a_loop_by_hand_also_with_noise_on_embeddings(alpha: float | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"neftune_noise_alpha": alpha, "optim": "sgd", "lr_scheduler_type": "constant"}
    batches: list[tuple[torch.Tensor, ...]] = []

    class Looks(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> torch.Tensor:
            batches.append((inputs["input_ids"], inputs["labels"], torch.get_rng_state()))
            loss: torch.Tensor = super().training_step(model, inputs, *args, **options)
            return loss

    _, ours = trained(tmp_path, kind=Looks, **options)
    model = evolving()
    if alpha is not None:
        model.get_input_embeddings().register_forward_hook(
            lambda module, args, out: out + torch.zeros_like(out).uniform_(-1, 1) * (alpha / out[0].numel() ** 0.5)
        )
        assert ours != trained(tmp_path, **{**options, "neftune_noise_alpha": None})[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    by_hand = []
    for step, (ids, labels, state) in enumerate(batches):
        model.set_step(step)
        torch.set_rng_state(state)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        by_hand.append(loss.item())
    assert largest_difference(ours, by_hand) < 2e-6
