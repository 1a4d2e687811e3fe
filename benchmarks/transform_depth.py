"""Seconds that `transform` takes for a deep and a shallow GPT-2 of the same width, verification included.

    python benchmarks/transform_depth.py [--width 256 --repeats 5]

Layers of one kind share their graphs, so depth should cost next to nothing. Compilation is not part of `transform`.
"""

from __future__ import annotations

import statistics
import time

import torch
from results import write
from timing import arguments
from transformers import GPT2Config, GPT2LMHeadModel

import estfx
from estfx.schedules import Schedule

DEPTHS = (6, 48)


def seconds(depth: int, width: int) -> float:
    model = GPT2LMHeadModel(GPT2Config(n_layer=depth, n_embd=width, n_head=8, vocab_size=256, n_positions=256))
    start = time.perf_counter()
    model = estfx.transform(model, Schedule.est(150))
    taken = time.perf_counter() - start
    assert len({layer.program for layer in model.report.layers}) == 1
    return taken


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    seconds(2, options.width)  # imports
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(options.repeats):
        for depth in DEPTHS:
            times[depth].append(seconds(depth, options.width))
    ratios = [deep / shallow for shallow, deep in zip(*times.values(), strict=True)]
    for depth, own in times.items():
        print(f"{depth} layers: {statistics.median(own):.2f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    rows = {f"{depth} layers": {"seconds": statistics.median(own)} for depth, own in times.items()}
    rows["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    write("transform_depth", vars(options), rows)


if __name__ == "__main__":
    main()
