"""Does the memory of a long run stay where it was, and does anything go on being traced or compiled?

    python benchmarks/long_run.py [--steps 10000 --no-compile]

A tiny Llama trains with another draw and another length at every step, through three stages five times. Memory is what
the process holds (resident), and how many tensors there are. It is taken after the first of the five rounds, by which
every length was met in every stage, and at the end.
"""

from __future__ import annotations

import gc
import random
from pathlib import Path

import torch
from results import write
from timing import arguments
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

import estfx
from estfx.schedules import Schedule, Stage

LENGTHS, BATCH, ROUNDS = range(8, 41), 2, 5


def stages(steps: int) -> Schedule:
    return Schedule(
        stages=[
            Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
            Stage(start=steps // 3, heads=0.5, neurons=0.5),
            Stage(start=2 * steps // 3),
        ]
    )


def resident() -> int:
    """Bytes of the process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.manual_seed(0)
    once = options.steps // ROUNDS
    lengths = random.Random(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    model = estfx.transform(LlamaForCausalLM(config), stages(once), compile=options.compile)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    found: dict[str, dict[str, float]] = {}

    def look(step: int) -> None:
        kinds = {id(kind): kind for kind in model._runtime.layers.kinds.values()}.values()
        variants = [variant for kind in kinds for variant in kind.all_variants()]
        found[f"after {step} steps"] = {
            "resident_bytes": resident(),
            "tensors": tensors(),
            "variants": len(variants),
            "programs": sum(len(variant.programs) for variant in variants),
            "calls_remembered": sum(len(kind.by_call) for kind in kinds),
            "compiled_graphs": counters["stats"]["unique_graphs"],
        }
        print(step, found[f"after {step} steps"], flush=True)

    for step in range(options.steps):
        if step == once:
            look(step)
        model.set_step(step % once)
        ids = torch.randint(128, (BATCH, lengths.choice(LENGTHS)))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    look(options.steps)
    first, last = found.values()
    growth = last["resident_bytes"] / first["resident_bytes"] - 1
    found["growth"] = {"resident": growth}
    print(f"memory grew by {growth:.2%} in the last four rounds")
    write("long_run" if options.compile else "long_run-uncompiled", vars(options), found)


if __name__ == "__main__":
    main()
