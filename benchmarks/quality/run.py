"""Runs what is missing of an experiment, one result file a run. A run that was stopped goes on where it was.

    python benchmarks/quality/run.py small-gpt2 [--arms dense,est] [--seeds 0,1] [--workers 2] [--minutes 60]

Needs the text of gather_text.py. With several workers each trains by itself, on its share of the machine's cores. After
`--minutes` nothing new is begun, and what runs is told to stop with a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from evaluate import TASKS, block_losses, items_of, ranked
from experiment import ROOT, Experiment, Plans, Run, found
from rich.console import Console

from estfx.runtime import differences
from estfx.settings import SettingsError
from estfx.training import RunConfig, documents, held_out_of, tokens_of, train

CURVE_POINTS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="names in experiments/, or YAML files")
    parser.add_argument("--arms", help="these only, with commas between")
    parser.add_argument("--seeds", help="these only")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1)), help="runs at a time")
    parser.add_argument("--minutes", type=float, help="to begin nothing new after")
    parser.add_argument("--list", action="store_true", help="show what there is to do, and stop")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # paths in experiments begin here
    todo = [
        (path, run)
        for path in map(found, arguments.experiments)
        for run in Plans.load(path.resolve()).runs()
        if (arguments.arms is None or run.arm in arguments.arms.split(","))
        and (arguments.seeds is None or str(run.seed) in arguments.seeds.split(","))
    ]
    missing = [(path.resolve(), run) for path, run in todo if not run.result.exists()]
    print(f"{len(todo)} runs, {len(missing)} to do", flush=True)
    if arguments.list:
        for _, run in missing:
            print(run)
    elif arguments.workers == 1 and len(missing) == 1:
        one(*missing[0])
    else:
        _all(missing, arguments.workers, arguments.minutes)


def _all(missing: list[tuple[Path, Run]], workers: int, minutes: float | None) -> None:
    """Each run in a process of its own, `workers` at a time."""
    for path, run in missing:
        Plans.load(path).solved(run.arm)  # once, for all of its seeds
    begun = time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    running: dict[Run, subprocess.Popen[bytes]] = {}
    stopping = False
    failed = 0
    while missing or running:
        over = minutes is not None and time.monotonic() - begun > 60 * minutes
        if over and not stopping:
            stopping = True
            missing = []
            for process in running.values():
                process.send_signal(signal.SIGTERM)  # it saves a checkpoint
        while missing and len(running) < workers:
            path, run = missing.pop(0)
            words = [sys.executable, __file__, str(path), "--arms", run.arm, "--seeds", str(run.seed), "--workers", "1"]
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            log = run.folder.with_suffix(".log").open("ab")
            running[run] = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
            print(f"{_minutes(begun)}  begun  {run}", flush=True)
        for run, process in list(running.items()):
            if process.poll() is not None:
                del running[run]
                failed += process.returncode != 0 and not stopping
                word = "done" if run.result.exists() else f"ended with {process.returncode}, see {run.folder}.log:"
                print(f"{_minutes(begun)}  {word}  {run}", flush=True)
        time.sleep(1)
    if failed:
        raise SystemExit(f"{failed} runs failed")


def _minutes(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:6.1f} min"


def one(path: Path, run: Run) -> None:
    """Trains one arm with one seed, evaluates it, and writes its result."""
    plans = Plans.load(path)
    solved = plans.solved(run.arm)
    own: dict[str, Any] = {"seed": run.seed}
    if solved.stops:  # a checkpoint where another arm ends
        (step,) = set(solved.stops.values())
        own |= {"save_every": step, "keep_checkpoints": 3}
    config = solved.config.model_copy(update={"train": solved.config.train.model_copy(update=own)})
    refuse_another(run, config)
    if not (run.folder / "summary.json").exists():
        resume = (run.folder / "metrics.jsonl").exists()
        if not resume:
            shutil.rmtree(run.folder, ignore_errors=True)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        train(None if resume else config, run.folder, Console(), resume=resume)
    for name, step in solved.stops.items():
        saved = run.folder / "checkpoints" / f"checkpoint-{step}"
        write(replace(run, arm=name), _result(run, plans.experiment, config, saved, step) | {"arm": name})
    write(run, _result(run, plans.experiment, config, run.folder / "model", config.train.total_steps))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def refuse_another(run: Run, config: RunConfig) -> None:
    """Raises SettingsError if there is a run in the folder with other settings than the arm has now."""
    if (run.folder / "config.yaml").exists():
        before = RunConfig.from_yaml(run.folder / "config.yaml").model_dump(mode="json")
        if changed := differences(before, config.resolved().model_dump(mode="json")):
            what = "; ".join(changed)
            raise SettingsError(f"the run in {run.folder} was begun with something else: {what}. Remove the folder.")


def _result(run: Run, experiment: Experiment, config: RunConfig, model: Path, steps: int) -> dict[str, Any]:
    """What is kept of a run, with the weights in `model`, which have seen so many steps."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = tokens_of(config.data.tokenizer)
    length = config.data.seq_len
    texts = held_out_of(documents(config.data.sources, config.data.column))
    stream = tokens.of(texts)
    tasks = {}
    for name in TASKS if experiment.task_items else ():
        items = items_of([text.decode() for text in texts], tokens, name, experiment.task_items, length)
        tasks[name] = "".join("01"[right] for right in ranked(loaded, items))
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in metrics if line["kind"] == "step" and line["step"] < steps]
    every = max(1, len(lines) // CURVE_POINTS)
    stages = json.loads((run.folder / "summary.json").read_text())["stages"]
    return {
        "experiment": run.experiment,
        "arm": run.arm,
        "seed": run.seed,
        "steps": steps,
        "tokens": sum(line["tokens"] for line in lines),
        "flops": sum(line["flops"] for line in lines),
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "whole_steps": {  # as many steps of the whole model cost what these did
            part: sum(stages[line["stage"] - 1][f"flops_of_whole_{part}"] for line in lines)
            for part in ("layers", "model")
        },
        "train_loss": [[line["step"], round(line["loss"], 5)] for line in lines[::every]],
        "held_out_curve": [
            [line["step"], round(line["held_out_loss"], 5)]
            for line in metrics
            if line["kind"] == "eval" and line["step"] <= steps
        ],
        "block_losses": block_losses(loaded, stream, length, experiment.held_out_blocks),
        "tasks": tasks,  # by item, whether it was right
        "stages": stages,  # their seconds a step among it
        "made_with": json.loads((run.folder / "made_with.json").read_text()),
        "config": config.model_dump(mode="json"),
        "text": json.loads((Path(config.data.sources[0]).parent / "manifest.json").read_text()),
        "environment": json.loads((run.folder / "environment.json").read_text()),
    }


def write(run: Run, result: dict[str, Any]) -> None:
    run.result.parent.mkdir(parents=True, exist_ok=True)
    temporary = run.result.with_suffix(".tmp")
    temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    temporary.replace(run.result)


if __name__ == "__main__":
    main()
