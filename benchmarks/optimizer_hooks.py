"""What it costs that optimizers leave idle units alone, and that idle layers follow others: a step, AdamW's part of it.

    python benchmarks/optimizer_hooks.py [--device cuda] [--width 512 --layers 6 --kept 0.25 --batch 8 --length 256]

A Llama of which a part of the units is drawn once, with `idle_units` "left_alone" and "updated"; one of which half of
the layers run, with `joining_layers` "copies" and "initialised"; and the whole, in turn.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from results import write
from timing import arguments
from transformers import LlamaConfig, LlamaForCausalLM

import estfx
from estfx.bench import synchronize
from estfx.schedules import Schedule, Stage


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--kept", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    device = torch.device(options.device)
    config = LlamaConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.width,
        intermediate_size=11 * options.width // 4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=4096,
    )
    ids = torch.randint(config.vocab_size, (options.batch, options.length), device=device)
    units = (Stage(start=0, heads=options.kept, neurons=options.kept), Stage(start=1_000_000))
    layers = (Stage(start=0, layers=0.5), Stage(start=1_000_000))
    schedules: dict[str, dict[str, Any]] = {
        "units left alone": {"stages": units, "idle_units": "left_alone"},
        "units updated": {"stages": units, "idle_units": "updated"},
        "layers follow": {"stages": layers, "joining_layers": "copies"},
        "layers do not": {"stages": layers},
        "whole": {"stages": (Stage(start=0),)},
    }
    arms: dict[str, tuple[Any, Any]] = {}
    for name, own in schedules.items():
        torch.manual_seed(0)
        schedule = Schedule(resample_every="never", kept_units="as_is", **own)
        model = estfx.transform(LlamaForCausalLM(config).to(device), schedule, verify=False)
        arms[name] = model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    steps: dict[str, list[float]] = {name: [] for name in arms}
    updates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(options.repeats + 2):
        for name, (model, optimizer) in arms.items():
            synchronize(device)
            start = time.perf_counter()
            model.set_step(repeat)
            model(input_ids=ids, labels=ids).loss.backward()
            synchronize(device)
            computed = time.perf_counter()
            optimizer.step()
            synchronize(device)
            updates[name].append(time.perf_counter() - computed)
            optimizer.zero_grad()
            steps[name].append(time.perf_counter() - start)
    figures = {
        name: {
            "step_ms": 1000 * statistics.median(steps[name][2:]),
            "optimizer_ms": 1000 * statistics.median(updates[name][2:]),
        }
        for name in arms
    }
    for name, row in figures.items():
        print(f"{name}: {', '.join(f'{key} {value:.1f}' for key, value in row.items())}")
    write("optimizer_hooks", vars(options), figures)


if __name__ == "__main__":
    main()
