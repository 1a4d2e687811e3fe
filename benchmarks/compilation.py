"""Seconds of compilation by depth, what a switch of stages costs after a warm-up, and compilations over many steps.

    python benchmarks/compilation.py [--layers 6 48] [--width 128] [--steps 500] [--repeats 3]

1. A warm-up compiles all stages; what it takes more than a second one, which finds everything compiled, is compilation.
   Each is measured with empty caches, the depths interleaved.
2. Over `--steps` steps with other subnetworks and two sequence lengths, through all stages: graphs compiled after the
   warm-up, and the first step of each stage against the median of the following ones.
3. The warm-up of a new process's first model that finds what an earlier one saved (`estfx.save_compiled`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from results import write
from timing import arguments
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_inductor_cache
from transformers import GPT2Config, GPT2LMHeadModel

import estfx

BATCH, LENGTHS, VOCABULARY = 2, (64, 96), 1024


def evolving(layers: int, width: int, steps: int) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=VOCABULARY, n_positions=LENGTHS[-1])
    return estfx.transform(GPT2LMHeadModel(config).train(), estfx.Schedule.est(steps), verify=False)


def batch(length: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, length))
    return {"input_ids": tokens, "labels": tokens}


def warm_up(model: Any) -> float:
    start = time.perf_counter()
    for length in LENGTHS:
        model.warmup(**batch(length))
    return time.perf_counter() - start


def compilation(layers: int, width: int) -> float:
    """Seconds, with nothing compiled before."""
    torch._dynamo.reset()
    with fresh_inductor_cache():
        model = evolving(layers, width, 300)
        return warm_up(model) - warm_up(model)


def many_steps(layers: int, width: int, steps: int) -> dict[str, float]:
    torch._dynamo.reset()
    model = evolving(layers, width, steps)
    warm_up(model)
    graphs = counters["stats"]["unique_graphs"]
    seconds: list[float] = []
    for step in range(steps):
        start = time.perf_counter()
        model.set_step(step)
        model(**batch(LENGTHS[step % 2])).loss.backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    found: dict[str, float] = {"graphs_after_warm_up": counters["stats"]["unique_graphs"] - graphs}
    starts = [stage.start for stage in model.schedule.stages]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], steps], strict=True), start=1):
        usual = statistics.median(seconds[start + 1 : stop])
        found[f"stage_{number}_first_step_of_usual"] = max(seconds[start : start + 2]) / usual
    return found


def in_new_process(layers: int, width: int, saved: Path | None) -> float:
    """Seconds of a warm-up with empty caches on disk, in a process that loads `saved` first."""
    command = [sys.executable, __file__, "--layers", str(layers), "--width", str(width), "--alone"]
    done = subprocess.run([*command, *([str(saved)] if saved else [])], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(layers: int, width: int, path: Path | None) -> float:
    with fresh_inductor_cache():
        if path is not None and path.exists():
            estfx.load_compiled(path)
        seconds = warm_up(evolving(layers, width, 300))
        if path is not None and not path.exists():
            estfx.save_compiled(path)
        return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 48])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", type=Path, nargs="?", const=False, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone is not None:
        print(alone(options.layers[0], options.width, options.alone or None))
        return
    times: dict[int, list[float]] = {layers: [] for layers in options.layers}
    for _ in range(options.repeats):
        for layers, own in times.items():
            own.append(compilation(layers, options.width))
    rows = {}
    for layers, own in times.items():
        ratios = sorted(a / b for a, b in zip(own, times[options.layers[0]], strict=True))
        rows[f"{layers} layers"] = {"seconds": statistics.median(own), "ratio": statistics.median(ratios)}
        print(f"{layers} layers: {statistics.median(own):.1f} s of compilation, {statistics.median(ratios):.2f} times")
    rows["many steps"] = many_steps(options.layers[0], options.width, options.steps)
    for name, value in rows["many steps"].items():
        print(f"{name}: {value:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "compiled"
        fresh = in_new_process(options.layers[0], options.width, saved)
        loaded = in_new_process(options.layers[0], options.width, saved)
    rows["new process"] = {"warm_up_seconds": fresh, "warm_up_seconds_with_saved": loaded}
    print(f"warm-up of a new process: {fresh:.1f} s, with what an earlier one saved {loaded:.1f} s")
    del options.alone
    write("compilation", vars(options), rows)


if __name__ == "__main__":
    main()
