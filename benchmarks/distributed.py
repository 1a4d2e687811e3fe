"""One process, DDP and FSDP2 on two: losses and draws on the same batches, collectives and memory by stage.

    python benchmarks/distributed.py [--steps 60] [--ranks 2] [--learning-rate 6e-4]

A Llama goes through the paper's three stages on the same global batches of text, with accumulation 1 and 4; beside it
the model without estfx, for what the order of float32 sums alone makes of the losses. On the CPU, over gloo: what is
shown is that the same is computed, not how fast.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from results import write
from timing import arguments
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import estfx
from estfx.bench import memory_of

ROWS, LENGTH, VOCABULARY, LAYERS = 16, 32, 256, 8
TEXT = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()


def batch_of(step: int) -> torch.Tensor:
    """[ROWS, LENGTH], the same on all ranks."""
    starts = torch.randint(len(TEXT) - LENGTH, (ROWS,), generator=torch.Generator().manual_seed(step))
    return torch.stack([TEXT[start : start + LENGTH] for start in starts])


def plain() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).train()


def evolving(steps: int, seed: int = 0) -> Any:
    return estfx.transform(plain(), estfx.Schedule.est(steps), seed=seed, compile=False, check_ranks_every=10)


def wrapped(way: str, model: Any) -> Any:
    if way == "DDP":
        return DistributedDataParallel(model, find_unused_parameters=True)
    if way == "FSDP2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def loss_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def trained(way: str, options: argparse.Namespace, accumulation: int, with_estfx: bool) -> dict[str, Any]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    inner = evolving(options.steps) if with_estfx else plain()
    model = wrapped(way, inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95))
    losses, drawn = [], []
    for step in range(options.steps):
        if with_estfx:
            inner.set_step(step)
            kept = inner.subnetwork
            drawn.append([kept.layers, {n: {r: u.tolist() for r, u in each.items()} for n, each in kept.units.items()}])
        total = torch.zeros(())
        parts = batch_of(step).chunk(ranks)[rank].chunk(accumulation)
        for number, part in enumerate(parts):
            waits = way == "DDP" and number < len(parts) - 1
            with model.no_sync() if waits else nullcontext():
                loss = loss_of(model, part) / accumulation
                loss.backward()
            total += loss.detach()
        if ranks > 1:
            dist.all_reduce(total)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / ranks)
    return {"losses": losses, "drawn": drawn}


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.found[func._opname] += 1
        return func(*args, **(kwargs or {}))


def counted(way: str, steps: int, _: int) -> dict[str, Any]:
    """Collectives and peak memory of a forward and backward pass in each stage."""
    inner = evolving(steps)
    model = wrapped(way, inner)
    tokens = batch_of(0).chunk(dist.get_world_size())[dist.get_rank()]
    found = {}
    for number, stage in enumerate(inner.schedule.stages, start=1):
        inner.set_step(stage.start)
        with Collectives() as collectives:
            loss_of(model, tokens).backward()
        model.zero_grad()
        memory = memory_of(lambda: loss_of(model, tokens).backward(), torch.device("cpu"))
        model.zero_grad()
        assert memory is not None
        layers = sum(inner.subnetwork.layers.values())
        found[f"stage {number}"] = {"layers": layers, **collectives.found, "peak_bytes": memory.peak}
    return found


def disagreeing(way: str, steps: int, _: int) -> dict[str, Any]:
    """Another seed on the last rank."""
    inner = evolving(steps, seed=int(dist.get_rank() == dist.get_world_size() - 1))
    start = time.perf_counter()
    try:
        for step in range(steps):
            inner.set_step(step)
    except estfx.EstfxError as error:
        return {"step": step, "seconds": time.perf_counter() - start, "said": str(error)}
    return {"step": -1, "seconds": time.perf_counter() - start, "said": "nothing"}


def _rank(rank: int, ranks: int, folder: str, function: Any, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    torch.save(function(*args), f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, function: Any, *args: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (ranks, folder, function, args), nprocs=ranks)
        return [torch.load(Path(folder) / str(rank)) for rank in range(ranks)]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for accumulation, with_estfx in product((1, 4), (True, False)):
        alone = trained("one process", options, accumulation, with_estfx)
        for way in ("DDP", "FSDP2"):
            each = on_ranks(options.ranks, trained, way, options, accumulation, with_estfx)
            differences = [
                abs(a - b) / b for found in each for a, b in zip(found["losses"], alone["losses"], strict=True)
            ]
            name = f"{way}, accumulation {accumulation}{'' if with_estfx else ', without estfx'}"
            rows[name] = {
                "largest_relative_difference_of_a_loss": max(differences),
                "same_subnetworks": all(found["drawn"] == alone["drawn"] for found in each),
                "loss_first": alone["losses"][0],
                "loss_last": alone["losses"][-1],
            }
            print(name, rows[name], flush=True)
    for way in ("DDP", "FSDP2"):
        for rank, found in enumerate(on_ranks(options.ranks, counted, way, options.steps, 1)):
            rows[f"{way}, rank {rank}"] = found
            print(f"{way}, rank {rank}: {found}", flush=True)
    for rank, found in enumerate(on_ranks(options.ranks, disagreeing, "", options.steps, 1)):
        rows[f"disagreement, rank {rank}"] = found
        print(f"disagreement, rank {rank}: {found}", flush=True)
    write("distributed", vars(options), rows)


if __name__ == "__main__":
    main()
