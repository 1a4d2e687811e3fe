"""TRL's SFTTrainer trains what a loop by hand does, document by document, where the package is installed.

It is no extra of estfx. To run these tests: `pip install --no-deps trl==1.16.0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from differences import largest_difference
from tiny_decoders import VOCABULARY, build
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.integrations.transformers import EvolvingCallback
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of things that TRL calls deprecated
STEPS = 6
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2, heads=0.5, neurons=0.5), Stage(start=4)],
    total_steps=STEPS,
)
WHOLE = Schedule(stages=[Stage(start=0)], total_steps=STEPS)
IGNORED = -100
RATE = 0.3
LORA = {"r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
WAYS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packing": True, "max_length": 24},
    "packed, wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 24},
    "padding-free": {"padding_free": True, "max_length": None},
    "chunked loss": {"loss_type": "chunked_nll"},
    "checkpointing": {"padding_free": True, "max_length": None, "gradient_checkpointing": True},
    "adapters": {"padding_free": True, "max_length": None},
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def documents() -> Any:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (60,), generator=generator)
    rows = [torch.randint(4, VOCABULARY, (int(n),), generator=generator).tolist() for n in lengths]
    return datasets.Dataset.from_dict({"input_ids": rows})


class Recording(SFTTrainer):
    """Keeps the batches, and what was trained of the model."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batches: list[dict[str, Any]] = []

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        self.batches.append(dict(inputs))
        return super().compute_loss(model, inputs, *args, **options)


def trainer_of(model: nn.Module, folder: Path, *callbacks: Any, adapters: bool = False, **options: Any) -> Recording:
    defaults: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "learning_rate": RATE,
        "optim": "sgd",  # AdamW makes much of rounding, where a gradient is nearly zero
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    own = [EvolvingCallback()] if isinstance(model, estfx.EvolvingModel) else []
    return Recording(
        model=model,
        args=SFTConfig(output_dir=str(folder), **(defaults | options)),
        train_dataset=documents(),
        processing_class=tokenizer(),
        callbacks=[*own, *callbacks],
        peft_config=peft.LoraConfig(**LORA) if adapters else None,
    )


def llama(attention: str = "sdpa") -> Any:
    return build("llama_grouped", num_hidden_layers=4, attn_implementation=attention)


def evolving(schedule: Schedule = SCHEDULE, attention: str = "sdpa") -> Any:
    return estfx.transform(llama(attention), schedule, compile=False)


def losses(trainer: Recording) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def cut(batch: dict[str, Any], by_position: bool) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The documents of a batch with their labels, each by itself."""
    for row in range(len(batch["input_ids"])):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        if by_position:
            starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
                yield ids[start:stop], labels[start:stop]
        else:
            length = int(batch["attention_mask"][row].sum())
            yield ids[:length], labels[:length]


def by_hand(model: Any, batches: list[dict[str, Any]]) -> list[float]:
    """Each document in a forward of its own, so that none can see another."""
    inner = estfx.evolving_within(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    model.train()
    found = []
    for step, batch in enumerate(batches):
        inner.set_step(step)
        total, number = torch.zeros(()), 0
        for ids, labels in cut(batch, "position_ids" in batch):
            logits = model(input_ids=ids[None]).logits[0, :-1]
            total = total + F.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
            number += int((labels[1:] != IGNORED).sum())
        loss = total / number
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.sweep("way", days=3)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_a_loop_by_hand(way: str, attention: str, tmp_path: Path) -> None:
    adapters = way == "adapters"
    trainer = trainer_of(evolving(attention=attention), tmp_path, adapters=adapters, **WAYS[way])
    hand: Any = evolving(attention=attention)
    if adapters:
        hand = peft.get_peft_model(hand, peft.LoraConfig(**LORA))
    hand.load_state_dict(trainer.model.state_dict())
    trainer.train()
    stages = [log["estfx/stage"] for log in trainer.state.log_history if "loss" in log]
    assert stages == [1, 1, 2, 2, 3, 3]
    want = by_hand(hand, trainer.batches)
    assert largest_difference(losses(trainer), want) < 5e-6
    for one, other in zip(trainer.model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.sweep("way", days=3)
@pytest.mark.parametrize("way", ["padding-free", "adapters"])
def test_with_everything_kept_the_losses_are_those_without_estfx(way: str, tmp_path: Path) -> None:
    options = {"adapters": way == "adapters", **WAYS[way]}
    plain = trainer_of(llama().train(), tmp_path, **options)
    plain.train()
    whole = trainer_of(evolving(WHOLE), tmp_path, **options)
    whole.train()
    assert losses(whole) == losses(plain)


class Watches(TrainerCallback):
    """Looks, before each step of the optimizer, at what has a gradient and what should have one."""

    def __init__(self) -> None:
        self.seen = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        kept = model.subnetwork
        narrowed = kept.parameters()
        skipped = tuple(f"{layer}." for layer, runs in kept.layers.items() if not runs)
        assert bool(skipped) == (state.global_step < 2)
        for name, parameter in model.named_parameters():
            if name.startswith(skipped):
                assert parameter.grad is None, name
                continue
            for dim, at_work in narrowed.get(name, {}).items():
                others = [i for i in range(parameter.shape[dim]) if i not in set(at_work.tolist())]
                assert not parameter.grad.index_select(dim, torch.tensor(others)).any(), name
                assert parameter.grad.index_select(dim, at_work).any(), name
                self.seen += 1
            assert parameter.grad.any(), name


@pytest.mark.sweep("way", days=3)
@pytest.mark.parametrize("way", ["packed", "padding-free", "checkpointing"])
def test_what_is_kept_is_trained_and_nothing_else(way: str, tmp_path: Path) -> None:
    watches = Watches()
    trainer = trainer_of(evolving(), tmp_path, watches, **WAYS[way])
    trainer.train()
    assert watches.seen > 20


def test_lengths_of_documents_make_no_new_graphs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="estfx"):
        trainer = trainer_of(evolving(), tmp_path, **WAYS["padding-free"])
        trainer.train()
    assert len({batch["max_length_q"] for batch in trainer.batches}) > 2
    assert len({len(batch["cu_seq_lens_q"]) for batch in trainer.batches} | {0}) > 1
    traced = [record.getMessage() for record in caplog.records if "new call signature" in record.getMessage()]
    assert len(traced) <= 1, traced


class StopsAt(TrainerCallback):
    """As a run that is killed: its learning rates are those of the whole."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


@pytest.mark.sweep("way", days=2)
@pytest.mark.parametrize("way", ["padding-free", "adapters"])
def test_a_resumed_run_ends_with_the_same_weights_and_plain_transformers_loads_them(way: str, tmp_path: Path) -> None:
    adapters = way == "adapters"
    options = {**WAYS[way], "adapters": adapters, "save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(evolving(), tmp_path / "whole", **options)
    whole.train()
    trainer_of(evolving(), tmp_path / "run", StopsAt(), **options).train()
    resumed = trainer_of(evolving(), tmp_path / "run", **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    folder = tmp_path / "run" / f"checkpoint-{STEPS}"
    loaded = (
        peft.PeftModel.from_pretrained(llama(), folder) if adapters else AutoModelForCausalLM.from_pretrained(folder)
    )
    assert not any(isinstance(module, estfx.EvolvingModel) for module in loaded.modules())
    for one, other in zip(loaded.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
