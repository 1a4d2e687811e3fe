"""Bytes of gradients that DDP sends at a step of each stage, without a hook and with `estfx.ddp_hook`.

    python benchmarks/ddp_bytes.py [--ranks 2]

Two models with layers large enough that the embedding is a small part. Bytes are those that are given to the
all-reduce, of each process; seconds are medians of a forward and backward pass over gloo on this machine's loopback,
which is no network: they show that nothing is lost by gathering, not what is won on a cluster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from distributed import on_ranks
from results import write
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import estfx
from estfx.runtime import numbers_left_out

ROUNDS = 5


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=256, n_head=8, vocab_size=257, n_positions=128))
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=257,
        )
    )


def measured(name: str, hooked: bool) -> dict[str, Any]:
    model = estfx.transform(model_of(name), estfx.Schedule.est(150), compile=False)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    sent = 0
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    if hooked:
        ddp.register_comm_hook(model, estfx.ddp_hook)
    else:
        ddp.register_comm_hook(None, allreduce_hook)  # which does what DDP does without one
    tokens = torch.randint(257, (2, 64))
    found = {}
    for number, stage in enumerate(model.schedule.stages, start=1):
        seconds = []
        for step in range(stage.start, stage.start + ROUNDS):
            model.set_step(step)
            dist.barrier()
            sent, begun = 0, time.perf_counter()
            ddp(input_ids=tokens, labels=tokens).loss.backward()
            seconds.append(time.perf_counter() - begun)
            model.zero_grad()
        all_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
        found[f"stage {number}"] = {
            "bytes_sent": sent,
            "bytes_of_what_is_at_work": all_bytes - 4 * numbers_left_out(model),
            "bytes_of_all_parameters": all_bytes,
            "median_seconds": statistics.median(seconds),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    for name in ("gpt2", "llama"):
        for hooked in (False, True):
            rows[f"{name}, {'ddp_hook' if hooked else 'no hook'}"] = on_ranks(options.ranks, measured, name, hooked)[0]
    for name, stages in rows.items():
        for stage, row in stages.items():
            keys = ("bytes_sent", "bytes_of_what_is_at_work")
            share, work = (row[key] / row["bytes_of_all_parameters"] for key in keys)
            print(f"{name:16} {stage}: {share:6.1%} sent, {work:6.1%} at work, {row['median_seconds']:.3f} s")
    write("ddp_bytes", vars(options), rows)


if __name__ == "__main__":
    main()
