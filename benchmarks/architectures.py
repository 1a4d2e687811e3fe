"""Every causal language model type of transformers, tiny and random: what is found, and whether the oracles hold.

    python benchmarks/architectures.py [TYPE ...] [--jobs 2] [--seconds 180]

Each type is built in a process of its own from a generic tiny configuration, transformed with verification (both
oracles on every kind of layer), and trained for one step of a narrowed stage. Writes `docs/architectures.md`, one row a
type, and `benchmarks/results/architectures.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "architectures.md"
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"

# Tiny values for the names that configurations use; each type takes those that it knows.
GENERIC: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "n_embd": 48,
    "d_model": 48,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "num_attention_heads": 6,
    "n_head": 6,
    "n_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 56,
    "ffn_dim": 56,
    "d_ff": 56,
    "decoder_layers": 3,
    "encoder_layers": 3,
    "decoder_attention_heads": 6,
    "encoder_attention_heads": 6,
    "decoder_ffn_dim": 56,
    "encoder_ffn_dim": 56,
    "moe_intermediate_size": 28,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# Tried one after the other, until the model runs: some types want as many KV heads as heads, or no head size of ours.
VARIANTS: tuple[dict[str, Any], ...] = ({}, {"num_key_value_heads": 6}, {"num_key_value_heads": None, "head_dim": None})


def tiny_config(model_type: str, variant: dict[str, Any] = VARIANTS[0]) -> Any:
    """The type's configuration, made tiny, with every dropout off. None in a variant leaves a value as it is."""
    from transformers import AutoConfig

    values = {key: value for key, value in {**GENERIC, **variant}.items() if value is not None}
    default = AutoConfig.for_model(model_type)
    known = set(vars(default)) | set(getattr(default, "attribute_map", {}))
    config = AutoConfig.for_model(model_type, **{k: v for k, v in values.items() if k in known})
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is not config:  # a text model inside: the same values there
        for key, value in values.items():
            if key in vars(text):
                setattr(text, key, value)
    for each in {id(config): config, id(text): text}.values():
        for key, value in list(vars(each).items()):
            if "drop" in key and isinstance(value, float):
                setattr(each, key, 0.0)
    return config


def examine(model_type: str) -> dict[str, Any]:
    """The first variant of a type that runs; if none does, what became of the first."""
    rows = []
    for variant in VARIANTS:
        rows.append(examine_variant(model_type, variant))
        if rows[-1].get("failed") not in ("build", "transform"):
            return rows[-1]
    return rows[0]


def examine_variant(model_type: str, variant: dict[str, Any]) -> dict[str, Any]:
    """Builds, transforms and trains; a failure is a result too."""
    import torch
    from transformers import AutoModelForCausalLM

    import estfx
    from estfx.schedule import Schedule, Stage

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"type": model_type}
    try:
        stage = "build"
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, variant)).train()
        row["class"] = type(model).__name__
        stage = "transform"
        schedule = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.67)])
        started = time.perf_counter()
        model = estfx.transform(model, schedule, compile=False)
        row["seconds"] = round(time.perf_counter() - started, 1)
        layers = model.report.layers
        row["layers"], row["droppable"] = len(layers), sum(layer.droppable for layer in layers)
        row["kinds"] = len({layer.program for layer in layers})
        row["axes"] = sorted({f"{axis.role} {axis.size}" for layer in layers for axis in layer.axes})
        row["notes"] = list(dict.fromkeys(note for layer in layers for note in layer.notes))
        stage = "train"
        ids = torch.randint(3, 101, (2, 17))
        model.set_step(0)
        logits = model(input_ids=ids).logits
        logits.float().pow(2).mean().backward()
        narrowed = model.subnetwork.parameters()
        gradients = dict(model.named_parameters())
        row["without_gradient"] = sorted(n for n in narrowed if gradients[n].grad is None)
    except Exception as error:
        row["failed"] = stage
        row["error"] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return row


def run_apart(model_type: str, seconds: int) -> dict[str, Any]:
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--one", model_type]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"type": model_type, "failed": "time", "error": f"took more than {seconds} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"type": model_type, "failed": "process", "error": last[:300]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def complete(row: dict[str, Any]) -> bool:
    """Layers may be skipped, and both heads (or what stands for them) and neurons are narrowed."""
    roles = {axis.split()[0].split("_")[0] for axis in row.get("axes", ())}
    return "failed" not in row and row["droppable"] > 0 and "neurons" in roles and bool(roles & {"heads", "channels"})


def table(rows: list[dict[str, Any]]) -> str:
    built = [row for row in rows if row.get("failed") != "build"]
    full = sum(map(complete, rows))
    lines = [
        "# What is narrowed in each model type of transformers",
        "",
        f"{len(rows)} causal language model types of transformers {version('transformers')}, with torch "
        f"{version('torch')}: {len(built)} could be built from a generic tiny configuration; in {full} of them layers "
        "can be skipped and both heads and neurons are narrowed. Every axis listed has passed both oracles (the whole "
        "graph against the layer; the narrowed graph against the masked whole in float64), unless a note says that it "
        "could not be verified. Made by `python benchmarks/architectures.py`.",
        "",
        "| type | layers (may be skipped) | kinds | narrowed | what stays whole, and why |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            what = f"{row['failed']}: {row['error']}"
            lines.append(f"| {row['type']} | – | – | – | {_cell(what)} |")
        else:
            notes = "; ".join(row["notes"])
            layers, axes = f"{row['layers']} ({row['droppable']})", ", ".join(row["axes"]) or "–"
            lines.append(f"| {row['type']} | {layers} | {row['kinds']} | {axes} | {_cell(notes)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 400 else text[:399] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=180, help="limit for one type")
    parser.add_argument("--one", action="store_true", help="examine one type here, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.types[0])))
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: run_apart(name, options.seconds), types):
            rows.append(row)
            state = row.get("failed") or ("complete" if complete(row) else "partly")
            print(f"{row['type']:28s} {state:9s} {row.get('error', row.get('axes'))}", flush=True)
    print(f"{sum(map(complete, rows))} of {len(rows)} complete")
    if not options.types:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        TABLE.write_text(table(rows))


if __name__ == "__main__":
    main()
