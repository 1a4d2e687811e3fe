"""Kills a run of `estfx train` again and again, at random moments, resumes it, and compares it with one left alone.

    python benchmarks/kills.py [--kills 30] [--seed 0]

Every kill is a SIGKILL, at any moment after the run has begun to train: half of them at a random time, half of them as
soon as a checkpoint is being written. In the end the weights must be those of the run left alone, to the bit.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from results import write
from safetensors.torch import load_file
from timing import arguments

SETTINGS = {
    "model.config.num_hidden_layers": 4,
    "model.config.hidden_size": 64,
    "model.config.num_attention_heads": 4,
    "model.config.resid_pdrop": 0.1,
    "data.seq_len": 32,
    "data.held_out_blocks": 8,
    "train.batch_size": 4,
    "train.compile": "false",
    "train.save_every": 5,
}


def started(folder: Path, steps: int, resume: bool) -> subprocess.Popen[bytes]:
    words = [w for key, value in {**SETTINGS, "train.total_steps": steps}.items() for w in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "estfx", "train", "--out", str(folder), *(["--resume"] if resume else words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def steps_done(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def kill(folder: Path, process: subprocess.Popen[bytes], rng: random.Random, while_saving: bool) -> str | None:
    """Kills the process; says when, or None if it came to its end before."""
    before = steps_done(folder)
    while steps_done(folder) == before:
        if process.poll() is not None:
            return None
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 2))
    unfinished = folder / "checkpoints" / "unfinished"
    while while_saving and not unfinished.exists():
        if process.poll() is not None:
            return None
        time.sleep(0.0005)
    if while_saving:
        time.sleep(rng.uniform(0, 0.02))
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    return "half written" if unfinished.exists() and any(unfinished.iterdir()) else "between checkpoints"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    moments: dict[str, float] = {"half written": 0, "between checkpoints": 0}
    with tempfile.TemporaryDirectory() as place:
        killed, alone = Path(place) / "killed", Path(place) / "alone"
        for number in range(options.kills):
            process = started(killed, options.steps, resume=number > 0)
            moment = kill(killed, process, rng, while_saving=number % 2 == 1)
            if moment is None:
                raise SystemExit(f"the run ended after {number} kills, with status {process.returncode}: more --steps")
            moments[moment] += 1
            print(f"kill {number + 1}: {moment}, after {steps_done(killed)} steps", flush=True)
        status = started(killed, options.steps, resume=True).wait()
        other = started(alone, options.steps, resume=False).wait()
        assert (status, other) == (0, 0), (status, other)
        one, two = (load_file(folder / "model" / "model.safetensors") for folder in (killed, alone))
        same = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    rows = {"kills": {**moments, "all": options.kills}, "weights": {"identical to the bit": float(same)}}
    print(f"{options.kills} kills: {moments}; weights {'are' if same else 'are NOT'} those of the run left alone")
    write("kills", vars(options), rows)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
