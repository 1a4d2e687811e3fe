"""Seconds and peak resident memory of `transform` for models of the largest sizes, on the meta device.

    python benchmarks/at_scale.py [llama-70b qwen3-moe-235b]

Each model is built and transformed in a process of its own. The seconds are those of `transform` alone; the peak is of
the whole process, with torch and transformers in it, which `imports_gibibytes` gives by itself. Exit status 1 if a
limit is passed. Weights are bfloat16: grouped matrix products exist on the meta device in no other type.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

SECONDS, GIBIBYTES = 20.0, 2.0  # limits, for each model
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "llama-70b": (
        "llama",
        {
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "intermediate_size": 28672,
            "vocab_size": 128256,
        },
    ),
    "qwen3-moe-235b": (
        "qwen3_moe",
        {
            "num_hidden_layers": 94,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
            "vocab_size": 151936,
        },
    ),
}


def measure(name: str) -> dict[str, Any]:
    """Builds and transforms one model here; a failure is a result too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import estfx
    from estfx.schedules import Schedule

    imports = peak_gibibytes()
    model_type, values = MODELS[name]
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, **values)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    figures: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    started = time.perf_counter()
    try:
        model = estfx.transform(model, Schedule.est(150_000))
        layers = model.report.layers
        figures["kinds"] = len({layer.program for layer in layers})
        figures["axes"] = sorted({f"{axis.role} {axis.size}" for layer in layers for axis in layer.axes})
        figures["notes"] = list(dict.fromkeys(note for layer in layers for note in layer.notes))
    except Exception as error:
        figures["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    figures["seconds"] = time.perf_counter() - started
    figures["peak_gibibytes"], figures["imports_gibibytes"] = peak_gibibytes(), imports
    return figures


def peak_gibibytes() -> float:
    """The largest resident size that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def within_limits(figures: dict[str, Any]) -> bool:
    return "error" not in figures and figures["seconds"] <= SECONDS and figures["peak_gibibytes"] <= GIBIBYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--one", action="store_true", help="measure one model here, and print JSON")
    options = parser.parse_args()
    if unknown := sorted(set(options.models) - set(MODELS)):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if options.one:
        print(json.dumps(measure(options.models[0])))
        return
    rows = {}
    for name in options.models:
        done = subprocess.run([sys.executable, __file__, name, "--one"], stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = figures = json.loads(done.stdout.splitlines()[-1])
        what = figures.get("error") or f"{figures['kinds']} kinds, {', '.join(figures['axes'])}"
        print(
            f"{name}: {figures['parameters'] / 1e9:.0f} billion parameters, {figures['seconds']:.1f} s (limit "
            f"{SECONDS:.0f}), {figures['peak_gibibytes']:.2f} GiB (limit {GIBIBYTES:.0f}): {what}",
            flush=True,
        )
    from results import write

    write("at_scale", {"limit_seconds": SECONDS, "limit_gibibytes": GIBIBYTES}, rows)
    if not all(map(within_limits, rows.values())):
        sys.exit(1)


if __name__ == "__main__":
    main()
