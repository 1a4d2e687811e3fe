"""How fast is a step on a GPU? One call, under 8 minutes: `benchmarks/gpu.sh speed`.

GPT-2 base and the layers of a Llama of 1 billion parameters, sequences of 1,024 and 4,096 tokens, in bfloat16. Each arm
does whole steps, forward and backward, in turn with the others; ratios are medians. The arms:

- `whole`: the original, its layers compiled one by one
- `stage 1`, `stage 2`, `stage 3`: the paper's stages, as `transform` makes them
- `is as small`: half of the layers, heads and neurons, cut out as a model of its own
- `reduce-overhead`: stage 1 and the whole with CUDA graphs

Time over FLOPs is the ratio of a stage's seconds to the whole's, over that of its FLOPs: 1 is a saving in full. What it
takes to gather the kept rows of all weights is measured apart. Cells that would begin after `--seconds` are left out,
and said to be.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results import write
from speed import TINYLLAMA
from timing import in_turn, seconds

import estfx

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS, WARMUP = 7, 3
LLAMA = {**TINYLLAMA, "max_position_embeddings": 4096}
GPT2 = {"n_positions": 4096, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TINY = {
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64, "vocab_size": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
CELLS = [("gpt2", 1024, 16), ("llama", 1024, 8), ("llama", 4096, 2), ("gpt2", 4096, 4)]  # and sequences of a batch
BEGUN = time.monotonic()
Row = dict[str, float | str]


def built(name: str, tiny: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {"gpt2": GPT2, "llama": LLAMA}[name]
    if tiny:
        sizes = {**sizes, **TINY[name]}
    if tiny and name == "llama":
        sizes |= {"num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64}
    config = AutoConfig.for_model(name, **sizes, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(device=DEVICE, dtype=torch.bfloat16).train()


def layers_compiled(model: Any, **options: Any) -> Any:
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for layer in layers:
        layer.compile(**options)
    return model


def halved(model: Any) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """Half of the units of every second layer."""
    layers = estfx.inspect(model).layers[::2]
    units = {layer.name: {axis.role: list(range(0, axis.size, 2)) for axis in layer.axes} for layer in layers}
    return units, [layer.name for layer in layers]


def arms_of(name: str, length: int, tiny: bool) -> tuple[dict[str, Callable[[], Any]], estfx.Plan]:
    """How each arm's model is made; one is in memory at a time but for its rounds."""
    schedule = estfx.Schedule(
        stages=[
            estfx.Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
            estfx.Stage(start=1000, heads=0.5, neurons=0.5),
            estfx.Stage(start=2000),
        ],
        total_steps=3000,
    )
    plan = estfx.plan(built(name, tiny), schedule, batch_size=1, seq_len=length)

    def stage(number: int, **options: Any) -> Any:
        model = estfx.transform(built(name, tiny), schedule, verify=False, **options)
        model.set_step(1000 * (number - 1))
        return model

    def small() -> Any:
        model = built(name, tiny)
        units, names = halved(model)
        return layers_compiled(estfx.cut(model, units, layers=names, in_place=True).train())

    made: dict[str, Callable[[], Any]] = {
        "whole": lambda: layers_compiled(built(name, tiny)),
        "stage 1": lambda: stage(1),
        "stage 2": lambda: stage(2),
        "stage 3": lambda: stage(3),
        "is as small": small,
    }
    if DEVICE == "cuda":
        made["whole, reduce-overhead"] = lambda: layers_compiled(built(name, tiny), mode="reduce-overhead")
        made["stage 1, reduce-overhead"] = lambda: stage(1, mode="reduce-overhead")
    return made, plan


def cell(name: str, length: int, sequences: int, tiny: bool) -> dict[str, Row]:
    """All arms of a model at one length, in turn."""
    made, plan = arms_of(name, length, tiny)
    ids = torch.randint(100, (sequences, length), device=DEVICE)
    models: dict[str, Any] = {}
    rows: dict[str, Row] = {}
    for arm, make in made.items():
        begun = time.monotonic()
        try:
            models[arm] = make()
            memory = [step(models[arm], ids)[1] for _ in range(WARMUP)][-1]
            rows[arm] = {"gib_at_most": memory, "seconds_to_compile": time.monotonic() - begun}
        except Exception as error:  # a finding
            models.pop(arm, None)
            rows[arm] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    turns = {arm: lambda _, model=model: step(model, ids)[0] for arm, model in models.items()}
    times = in_turn(turns, ROUNDS)  # type: ignore[arg-type] # mypy knows no lambda with a default
    flops = {f"stage {n}": stage.flops_model / plan.whole.flops_model for n, stage in enumerate(plan.stages, start=1)}
    for arm, each in times.items():
        ratios = [own / whole for own, whole in zip(each, times["whole"], strict=True)]
        rows[arm] |= {"seconds": statistics.median(each), "of_whole": statistics.median(ratios)}
        share = flops.get(arm.split(",")[0])
        if share is not None:
            rows[arm] |= {"flops_of_whole": share, "time_over_flops": statistics.median(ratios) / share}
    if "stage 1" in rows and "is as small" in rows and "seconds" in rows["is as small"]:
        pairs = zip(times["stage 1"], times["is as small"], strict=True)
        rows["stage 1"]["over_is_as_small"] = statistics.median(one / two for one, two in pairs)
    if "stage 1" in models:
        rows["stage 1"]["seconds_gathering"] = gathering(models["stage 1"])
    return {f"{name}, {sequences} x {length}: {arm}": row for arm, row in rows.items()}


def gathering(model: Any) -> float:
    """Seconds that it takes to gather the kept rows of all weights at work, once."""
    weights, kept = dict(model.named_parameters()), model.subnetwork.parameters()

    def gather() -> None:
        for name, dims in kept.items():
            part = weights[name].detach()
            for dim, index in dims.items():
                part = part.index_select(dim, index.to(part.device))

    return statistics.median(seconds(gather, DEVICE) for _ in range(ROUNDS))


def step(model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds and GiB at most of a forward and a backward pass; another draw each time."""
    if hasattr(model, "set_step"):
        model.set_step(model.step + 1)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    begun = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - begun
    for parameter in model.parameters():
        parameter.grad = None
    return took, torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="models of no size")
    parser.add_argument("--seconds", type=float, default=360, help="nothing is begun after them")
    options = parser.parse_args()
    rows: dict[str, Row] = {}
    for name, length, sequences in CELLS[:2] if options.tiny else CELLS:
        if time.monotonic() - BEGUN > options.seconds:
            rows[f"{name}, {sequences} x {length}"] = {"left_out": "the time was over"}
            continue
        rows |= cell(name, 32 if options.tiny else length, 2 if options.tiny else sequences, options.tiny)
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        for arm, row in rows.items():
            print(f"{arm:48} {row}", flush=True)
        if not options.tiny:
            write("gpu-speed", vars(options), rows)  # after each cell, so that a stop loses one


if __name__ == "__main__":
    main()
