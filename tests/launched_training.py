"""A few steps of a small Llama, as launchers start it: `torchrun … launched_training.py WAY FILE`.

The first rank writes a JSON file: the losses of the joined batches, the stages, and a sum over the weights at the end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from tiny_decoders import build, tokens
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STEPS = 9
ROWS = 4  # of a global batch
BREAK = 2  # where a run is resumed: in the first stage, in which some layers may never have run
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=3, heads=0.5, neurons=0.5), Stage(start=6)],
    total_steps=STEPS,
)
DATA = [{"input_ids": row, "labels": row} for step in range(STEPS) for row in tokens(batch=ROWS, seed=step)]
WAYS = ("torch-ddp", "torch-fsdp2", "accelerate-ddp", "accelerate-fsdp2", "trainer", "fabric-ddp")


def evolving() -> Any:
    return estfx.transform(build("llama_grouped", num_hidden_layers=4), SCHEDULE, compile=False, verify=False).train()


def adam(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def rank_and_number() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def joined(loss: torch.Tensor) -> float:
    """The loss of the global batch, of which each rank has as many tokens."""
    loss = loss.detach().clone()
    _, number = rank_and_number()
    if number > 1:
        dist.all_reduce(loss)
    return loss.item() / number


def summed(model: nn.Module) -> float:
    total = 0.0
    for parameter in model.parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        total += whole.detach().double().abs().sum().item()
    return total


def steps(
    inner: Any,
    outer: Any,
    optimizer: Any,
    batches: Any,
    accelerator: Any = None,
    save: Callable[[], object] = lambda: None,
    first: int = 0,
) -> dict[str, Any]:
    losses, stages = [], []
    for step, batch in enumerate(batches, first):
        if step == BREAK > first:
            save()
        inner.set_step(step)
        loss = outer(**batch).loss
        if accelerator is None:
            loss.backward()
            nn.utils.clip_grad_norm_(outer.parameters(), 1.0)
        else:
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(outer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(joined(loss))
        stages.append(inner.stage_index)
    return {"losses": losses, "stages": stages, "weights": summed(inner), "kind": type(outer).__name__}


def saved_and_loaded(model: Any, state: Any) -> float | None:
    """The sum over the weights of what plain transformers loads, on the first rank."""
    if rank_and_number()[0] > 0:
        return None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state)
        return summed(AutoModelForCausalLM.from_pretrained(folder))


def own_rows(first: int = 0) -> Any:
    rank, number = rank_and_number()
    for step in range(first, STEPS):
        rows = tokens(batch=ROWS, seed=step).chunk(number)[rank]
        yield {"input_ids": rows, "labels": rows}


def alone() -> dict[str, Any]:
    model = evolving()
    return steps(model, model, adam(model), own_rows())


def shared_folder(name: str) -> str:
    """The same for all processes of a launch, and of this launch alone."""
    return f"{tempfile.gettempdir()}/{name}-{os.environ['MASTER_PORT']}"


def with_torch(way: str) -> dict[str, Any]:
    dist.init_process_group("gloo")
    folder = shared_folder("state")

    def prepared() -> Any:
        model = evolving()
        outer: Any = model
        if way == "torch-ddp":
            outer = DistributedDataParallel(model, find_unused_parameters=True)
        else:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        optimizer = adam(model)
        estfx.initialise_optimizer(optimizer)
        return model, outer, optimizer

    def state_of(outer: Any, optimizer: Any) -> dict[str, Any]:
        return dict(zip(("model", "optimizer"), get_state_dict(outer, optimizer), strict=True))

    model, outer, optimizer = prepared()
    save = partial(
        lambda outer, optimizer: dcp.save(state_of(outer, optimizer), checkpoint_id=folder), outer, optimizer
    )
    found = steps(model, outer, optimizer, own_rows(), save=save)
    model, outer, optimizer = prepared()
    state = state_of(outer, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(outer, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    found["resumed"] = steps(model, outer, optimizer, own_rows(BREAK), first=BREAK)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {**found, "loaded": saved_and_loaded(model, whole)}


def with_accelerate(way: str) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if way == "accelerate-fsdp2":  # for accelerate 1.15 takes DDP on the CPU, whatever it is told
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # as its configuration says
    folder = shared_folder("state")

    def prepared() -> Any:
        model = evolving()
        loader = DataLoader(DATA, batch_size=ROWS // accelerator.num_processes)  # type: ignore[arg-type]  # a list will do as a dataset
        optimizer = adam(model)
        outer, optimizer, batches = accelerator.prepare(model, optimizer, loader)
        assert isinstance(outer, FSDPModule if way == "accelerate-fsdp2" else DistributedDataParallel)
        if way == "accelerate-fsdp2":
            estfx.initialise_optimizer(optimizer)
        return estfx.evolving_within(outer), outer, optimizer, batches

    inner, outer, optimizer, batches = prepared()
    found = steps(inner, outer, optimizer, batches, accelerator, lambda: accelerator.save_state(folder))
    accelerator.free_memory()
    inner, outer, optimizer, batches = prepared()
    accelerator.load_state(folder)
    rest = accelerator.skip_first_batches(batches, BREAK)
    found["resumed"] = steps(inner, outer, optimizer, rest, accelerator, first=BREAK)
    return {**found, "loaded": saved_and_loaded(inner, accelerator.get_state_dict(outer))}


def with_fabric() -> dict[str, Any]:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    strategy = DDPStrategy(find_unused_parameters=True)
    fabric = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy=strategy)
    fabric.launch()
    file = f"{shared_folder('fabric')}.pth"

    def prepared() -> Any:
        model = fabric.setup(evolving())
        return model, fabric.setup_optimizers(adam(model))

    def trained(model: Any, optimizer: Any, first: int) -> dict[str, Any]:
        losses, stages = [], []
        for step, batch in enumerate(own_rows(first), first):
            if step == BREAK > first:
                fabric.save(file, {"model": model, "optimizer": optimizer})
            model.set_step(step)  # through Fabric's wrapper
            loss = model(**batch).loss
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(joined(loss))
            stages.append(model.stage_index)
        kind = type(model._forward_module).__name__
        return {"losses": losses, "stages": stages, "weights": summed(model), "kind": kind}

    found = trained(*prepared(), first=0)
    model, optimizer = prepared()
    fabric.load(file, {"model": model, "optimizer": optimizer})
    found["resumed"] = trained(model, optimizer, BREAK)
    return {**found, "loaded": saved_and_loaded(model.module, model.module.state_dict())}


def with_trainer() -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    from estfx.integrations.transformers import EvolvingCallback

    number = os.environ.get("WORLD_SIZE", "1")
    folder = shared_folder("trainer") if number != "1" else tempfile.mkdtemp()
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // int(number),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=BREAK,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )

    def trained(checkpoint: str | None = None) -> tuple[Any, dict[str, Any]]:
        model = evolving()
        trainer = Trainer(model=model, args=arguments, train_dataset=DATA, callbacks=[EvolvingCallback()])  # type: ignore[arg-type]  # a list will do as a dataset
        trainer.train(resume_from_checkpoint=checkpoint)
        lines = [log for log in trainer.state.log_history if "loss" in log]
        return model, {
            "losses": [log["loss"] for log in lines],
            "stages": [log["estfx/stage"] - 1 for log in lines],
            "weights": summed(model),
            "kind": type(trainer.model_wrapped).__name__,
        }

    _, found = trained()
    model, again = trained(f"{folder}/checkpoint-{BREAK}")
    found["resumed"] = {**again, "losses": again["losses"][BREAK:]}  # what was logged before is kept
    return {**found, "loaded": saved_and_loaded(model, model.state_dict())}


def main(way: str, file: str) -> None:
    torch.set_num_threads(1)
    if way in ("trainer", "fabric-ddp"):
        found = with_trainer() if way == "trainer" else with_fabric()
    else:
        found = with_torch(way) if way.startswith("torch-") else with_accelerate(way)
    if rank_and_number()[0] == 0:
        Path(file).write_text(json.dumps(found))
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
