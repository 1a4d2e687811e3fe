"""Is what runs on the GPU right? One call, under 8 minutes: `benchmarks/gpu.sh correctness`.

- Twelve decoders, in float32 and bfloat16: logits and gradients of the compiled whole and of a compiled part, against
  the same in float64 without compilation. The bound is twice what the original differs by, compiled and not.
- CUDA graphs (`mode="reduce-overhead"`): the losses of twelve steps through three stages, against `mode=None`.
- FSDP2 on one rank: the same losses as without.
- `estfx train`, killed and resumed: the weights against those of a run that was left alone.

Each check is a process of its own, some side by side, and what fails is a row with the error.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from results import write
from torch import nn

import estfx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from tiny_decoders import DECODERS, build, tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDE_BY_SIDE = 6 if DEVICE == "cuda" else 1
PART = estfx.Schedule(stages=[estfx.Stage(start=0, heads=0.5, neurons=0.5, layers=0.67), estfx.Stage(start=10)])
STEPS = 12
GPT2 = {"n_layer": 4, "n_embd": 128, "n_head": 4}
Row = dict[str, float | str]


# -- compiled against eager ------------------------------------------------------------------------------------------


def decoder(name: str, precision: str) -> dict[str, Row]:
    """The whole and a part of one decoder in one precision."""
    dtype = getattr(torch, precision)
    ids = tokens(2, 32).to(DEVICE)
    rows: dict[str, Row] = {}
    weights = build(name).to(dtype).state_dict()  # what the precision can hold, for all of them

    def made(of: torch.dtype) -> nn.Module:
        model = build(name)
        model.load_state_dict(weights)
        return model.to(device=DEVICE, dtype=of)

    options: dict[str, Any] = {"seed": 3, "verify": False}
    exact = estfx.transform(made(torch.float64), PART, compile=False, **options)
    eager = estfx.transform(made(dtype), PART, compile=False, **options)
    compiled = estfx.transform(made(dtype), PART, **options)
    for what, step in (("part", 0), ("whole", 10)):
        for model in (exact, eager, compiled):
            model.set_step(step)
        truth = results_of(exact, ids)
        own = [apart(results_of(eager, ids), truth)]
        if what == "whole":
            own += [apart(results_of(each, ids), truth) for each in (made(dtype), torch.compile(made(dtype)))]
        off, most = apart(results_of(compiled, ids), truth), max(own)
        rows[f"{name}, {precision}, {what}"] = {
            "off": off,
            "original_off": most,
            "right": "yes" if off <= 2 * most else "NO",
        }
    return rows


def results_of(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    grads = {name.removeprefix("_orig_mod."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [output.logits.detach().double(), *(grads[name].double() for name in sorted(grads))]


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference, over the largest number of the logits, or of all gradients."""
    assert len(one) == len(other)
    largest = max(float(grad.abs().max()) for grad in other[1:])
    scales = [float(other[0].abs().max())] + [largest] * (len(other) - 1)
    pairs = zip(one, other, scales, strict=True)
    return max(float((a - b).abs().max()) / scale for a, b, scale in pairs)


# -- runs --------------------------------------------------------------------------------------------------------------


def losses(mode: str | None, sharded: bool) -> list[float]:
    """Of a few steps through three stages."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {**GPT2, "vocab_size": 256, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).to(DEVICE)
    model = estfx.transform(model, estfx.Schedule.est(STEPS), mode=mode, compile=not sharded)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(DEVICE, (1,))
        for layer in model.transformer.h:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    found = []
    for step in range(STEPS):
        model.set_step(step)
        ids = tokens(4, 64, seed=step).to(DEVICE)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def cuda_graphs() -> dict[str, Row]:
    if DEVICE != "cuda":
        return {"CUDA graphs": {"right": "no GPU"}}
    return {"CUDA graphs": _same(losses("reduce-overhead", False), losses(None, False))}


def fsdp2() -> dict[str, Row]:
    import torch.distributed as dist

    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.update(store)
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    rows = {"FSDP2 on one rank": _same(losses(None, True), losses(None, False))}
    dist.destroy_process_group()
    return rows


def _same(one: list[float], other: list[float]) -> Row:
    off = max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))
    return {"off": off, "first_loss": one[0], "last_loss": one[-1], "right": "yes" if off <= 1e-3 else "NO"}


def resumed() -> dict[str, Row]:
    """Killed by SIGKILL after its second checkpoint, resumed, and compared with a run that was left alone."""
    from safetensors.torch import load_file

    values = {"train.total_steps": 40, "train.save_every": 8, "train.compile": "false", "data.held_out_blocks": 8}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as place:
        killed, alone = Path(place) / "killed", Path(place) / "alone"
        command = [sys.executable, "-m", "estfx", "train", "--out"]
        with subprocess.Popen([*command, str(killed), *words], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not (killed / "checkpoints" / "checkpoint-16").exists():
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        subprocess.run([*command, str(killed), "--resume"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, str(alone), *words], check=True, stdout=subprocess.DEVNULL)
        one, two = (load_file(folder / "model" / "model.safetensors") for folder in (killed, alone))
    off = max(float((one[name] - two[name]).abs().max()) for name in two)
    return {"killed and resumed": {"off": off, "to_the_bit": str(off == 0), "right": "yes" if off <= 1e-3 else "NO"}}


# -- all of them -------------------------------------------------------------------------------------------------------


def one(check: str) -> dict[str, Row]:
    """A check in a process of its own."""
    words = [sys.executable, __file__, "--only", check]
    done = subprocess.run(words, capture_output=True, text=True, timeout=420, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {check: {"right": "NO", "error": last[:300]}}
    rows: dict[str, Row] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def run(check: str) -> dict[str, Row]:
    name, _, precision = check.partition(" ")
    return (
        decoder(name, precision) if precision else {"graphs": cuda_graphs, "fsdp2": fsdp2, "resumed": resumed}[name]()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="two decoders, and the runs")
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(run(options.only)))
        return
    names = ["gpt2", "llama_grouped"] if options.tiny else list(DECODERS)
    checks = ["graphs", "fsdp2", "resumed", *(f"{name} {dtype}" for name in names for dtype in ("float32", "bfloat16"))]
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for made in pool.map(one, checks):
            rows |= made
            for name, row in made.items():
                print(f"{name:40} {row}", flush=True)
    wrong = [name for name, row in rows.items() if row["right"] == "NO"]
    if not options.tiny:
        write("gpu-correctness", copy.copy(vars(options)), rows)
    print(f"{len(rows)} checks, {len(wrong)} wrong: {wrong}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
