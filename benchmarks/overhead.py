"""What estfx's own Python costs: the draws of a step, `set_step`, and the call of a layer; no arithmetic to speak of.

    python benchmarks/overhead.py [--layers 100] [--neurons 6400] [--repeats 50]

1. `set_step` for GPT-2 layers with that many neurons, and how long it waits for the draws, which are made in a thread
   while the step before trains (here it sleeps, for three times as long as they take); and how long they take.
2. Microseconds that a layer takes, forward and backward, where its tensors have next to no elements: eager, compiled as
   a whole model, compiled layer by layer, and as estfx runs it with half the heads and neurons. On a GPU this is the
   time in which the kernels of a layer have to be launched; what a layer computes for longer hides it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results import write
from timing import arguments, in_turn, seconds
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

import estfx
from estfx.schedules import Schedule, Stage

HALF = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5), Stage(start=1_000_000)])


def gpt2(layers: int, width: int, neurons: int) -> torch.nn.Module:
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, n_inner=neurons, vocab_size=64, n_positions=8)
    return GPT2Model(config)


def llama(layers: int) -> torch.nn.Module:
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=64
    )
    return LlamaModel(config)


def steps(options: argparse.Namespace) -> dict[str, float]:
    model: Any = estfx.transform(
        gpt2(options.layers, 32, options.neurons).to(options.device),
        Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5)]),
        compile=False,
        verify=False,
    )
    runtime = model._runtime
    waits: list[float] = []
    of = runtime._draws.of

    def timed(step: int) -> Any:
        start = time.perf_counter()
        drawn = of(step)
        waits.append(time.perf_counter() - start)
        return drawn

    runtime._draws.of = timed
    draw = {"draws": lambda repeat: seconds(lambda: runtime._draw(repeat), options.device)}
    alone = in_turn(draw, options.repeats, left_out=2)["draws"]
    found = []
    for step in range(options.repeats + 2):
        start = time.perf_counter()
        model.set_step(step)
        found.append(time.perf_counter() - start)
        time.sleep(3 * statistics.median(alone))  # the step trains
    return {
        "set_step_ms": 1000 * statistics.median(found[2:]),
        "wait_for_draws_ms": 1000 * statistics.median(waits[2:]),
        "draws_ms": 1000 * statistics.median(alone),
    }


def calls(model: torch.nn.Module, layers: int, options: argparse.Namespace) -> dict[str, float]:
    torch._dynamo.reset()
    model = model.to(options.device).train()
    evolving: Any = estfx.transform(copy.deepcopy(model), HALF, verify=False)
    by_layer = copy.deepcopy(model)
    for layer in by_layer.h if hasattr(by_layer, "h") else by_layer.layers:
        layer.compile(fullgraph=True)
    arms = {"eager": model, "compiled": torch.compile(model), "compiled_layers": by_layer, "estfx": evolving}
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=options.device)

    def at(name: str) -> Callable[[int], float]:
        def step(repeat: int) -> float:
            if name == "estfx":
                evolving.set_step(repeat)
            called = arms[name]
            return seconds(
                lambda: called(input_ids=tokens, use_cache=False).last_hidden_state.sum().backward(), options.device
            )

        return step

    times = in_turn({name: at(name) for name in arms}, options.repeats, left_out=2)
    return {name: statistics.median(own) / layers * 1e6 for name, own in times.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--neurons", type=int, default=6400)
    parser.add_argument("--called-layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = {"a step": steps(options)}
    number = options.called_layers
    rows["microseconds a layer, gpt2"] = calls(gpt2(number, 32, 64), number, options)
    rows["microseconds a layer, llama"] = calls(llama(number), number, options)
    for name, row in rows.items():
        print(f"{name}: {', '.join(f'{key} {value:.2f}' for key, value in row.items())}")
    write("overhead", vars(options), rows)


if __name__ == "__main__":
    main()
