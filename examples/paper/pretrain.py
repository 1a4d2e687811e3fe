"""Pre-trains a decoder as a file of this folder says, in transformers' Trainer.

    torchrun --nproc-per-node 8 examples/paper/pretrain.py examples/paper/gpt2-base-est.yaml --out runs/gpt2-base-est

Before that, on any machine and without data:

    python examples/paper/pretrain.py FILE --shapes      # two steps of each stage at full size, without weights
    python examples/paper/pretrain.py FILE --rehearse    # twenty steps of a small model on the CPU
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

import estfx
from estfx.integrations.transformers import EvolvingCallback

REHEARSAL = {"max_steps": 20, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "warmup_steps": 2}
REHEARSAL_LENGTH, BYTES = 64, 256


def main() -> None:
    """Reads the file, and does what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="where checkpoints and logs go; a run there is gone on with")
    parser.add_argument("--shapes", action="store_true", help="two steps of each stage at full size, without weights")
    parser.add_argument("--rehearse", action="store_true", help="twenty steps of a small model on the CPU")
    options = parser.parse_args()
    settings = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    if options.shapes:
        check_shapes(settings)
    elif options.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            run(rehearsal_of(settings), Path(folder), text=standard_library())
    elif options.out is None:
        parser.error("--out FOLDER is needed, for checkpoints and logs.")
    else:
        run(settings, options.out)


def run(settings: dict[str, Any], folder: Path, text: list[str] | None = None) -> None:
    """Trains. Goes on with the last checkpoint in the folder, if there is one."""
    arguments = TrainingArguments(output_dir=str(folder), **settings["training"])
    set_seed(arguments.seed)
    schedule = schedule_of(settings)
    model = AutoModelForCausalLM.from_config(config_of(settings))
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    plan = estfx.plan(model, schedule, batch_size=batch, seq_len=settings["data"]["length"])
    with arguments.main_process_first():
        blocks = blocks_of(settings["data"], text)
    parts = blocks.train_test_split(test_size=min(0.05, 2048 / len(blocks)), seed=0)
    model = estfx.transform(model, schedule, compile=settings.get("compile", True))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        callbacks=[EvolvingCallback(plan)],
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    if trainer.is_world_process_zero():
        print(f"loss on held-out text {trainer.evaluate()['eval_loss']:.4f}, {saving(plan)}")
    trainer.save_model()


def config_of(settings: dict[str, Any]) -> Any:
    """The model's configuration."""
    return AutoConfig.for_model(settings["model"], **settings["config"])


def schedule_of(settings: dict[str, Any]) -> estfx.Schedule:
    """A preset by its name, or stages."""
    steps = settings["training"]["max_steps"]
    given = settings["schedule"]
    if "preset" not in given:
        return estfx.Schedule(total_steps=steps, **given)
    if given["preset"] == "dense":
        return estfx.Schedule(stages=[estfx.Stage(start=0)], total_steps=steps)
    made: estfx.Schedule = getattr(estfx.Schedule, given["preset"])(steps)
    return made


def saving(plan: estfx.Plan) -> str:
    """What a schedule saves."""
    return f"{plan.saving_layers:.2%} of the layers' FLOPs saved, {plan.saving_model:.2%} of the whole model's"


# -- text --------------------------------------------------------------------------------------------------------------


def blocks_of(data: dict[str, Any], text: list[str] | None) -> Any:
    """The text as blocks of tokens, in a memory-mapped cache that all processes share."""
    import datasets

    if text is not None:
        raw = datasets.Dataset.from_dict({data["column"]: text})

        def tokens_of(texts: list[str]) -> list[list[int]]:
            return [list(each.encode()) for each in texts]
    else:
        from transformers import AutoTokenizer

        raw = datasets.load_dataset(data["dataset"], split="train")
        tokenizer = AutoTokenizer.from_pretrained(data["tokenizer"])

        def tokens_of(texts: list[str]) -> list[list[int]]:
            return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, verbose=False)["input_ids"]]

    def cut(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        stream = [token for tokens in tokens_of(rows[data["column"]]) for token in tokens]
        length = data["length"]
        whole = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
        return {"input_ids": whole, "labels": whole}

    processes = None if text is not None else os.cpu_count()
    return raw.map(cut, batched=True, remove_columns=raw.column_names, num_proc=processes)


def standard_library() -> list[str]:
    """Some modules of Python's own, for a rehearsal."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("[a-d]*.py"))]


# -- before a run ------------------------------------------------------------------------------------------------------


def rehearsal_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, cut down: a small model, bytes as tokens, the same stages within twenty steps."""
    training = {**settings["training"], **REHEARSAL, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    training |= {
        "bf16": False,
        "torch_compile": False,
        "logging_steps": 5,
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    if "lr_scheduler_kwargs" in training:
        training["lr_scheduler_kwargs"] = {**training["lr_scheduler_kwargs"], "num_decay_steps": 4}
    schedule = schedule_of(settings)
    fewer = [
        stage.model_copy(update={"start": stage.start * 20 // (schedule.total_steps or 1)}) for stage in schedule.stages
    ]
    small = schedule.model_copy(update={"stages": tuple(fewer), "total_steps": None})
    config = {**settings["config"], **settings["small"], "vocab_size": BYTES, "bos_token_id": 0, "eos_token_id": 0}
    return {
        **settings,
        "config": config,
        "schedule": small.model_dump(exclude={"total_steps"}),
        "training": training,
        "data": {**settings["data"], "length": REHEARSAL_LENGTH},
        "compile": False,
    }


def check_shapes(settings: dict[str, Any]) -> None:
    """Two steps of each stage at full size on the meta device, where tensors have shapes and no numbers."""
    schedule, length = schedule_of(settings), settings["data"]["length"]
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config_of(settings))
        tokens = torch.zeros(1, length, dtype=torch.int64)
        mask = torch.zeros(1, 1, length, length)  # a mask of its own: without one transformers looks at numbers
    plan = estfx.plan(model, schedule, batch_size=1, seq_len=length)
    evolving = estfx.transform(model, schedule, compile=False)
    optimizer = torch.optim.AdamW(evolving.parameters(), lr=1e-4)
    for number, stage in enumerate(schedule.stages, start=1):
        for step in (stage.start, stage.start + 1):
            evolving.set_step(step)
            evolving(input_ids=tokens, attention_mask=mask, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        share = plan.stages[number - 1].flops_layers / plan.whole.flops_layers
        print(f"stage {number} from step {stage.start:,}: two steps, each {share:.1%} of the whole layers' FLOPs")
    print(f"{sum(parameter.numel() for parameter in evolving.parameters()):,} parameters; {saving(plan)}")


if __name__ == "__main__":
    main()
