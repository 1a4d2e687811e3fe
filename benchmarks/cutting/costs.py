"""What it takes to score, refit and search, and how fast a part is that was cut out."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))  # a measurement of memory is a process of its own

from parts import BY, Row, by_scores, note
from timing import in_turn, ratios, seconds
from transformers import GPT2Config, GPT2LMHeadModel

import estfx

__all__ = ["memory", "search", "speed"]


def speed(model: Any, text: Any) -> dict[str, Row]:
    """Tokens a second of the whole and of half of it, in turn; medians of ratios. 16 texts are read, one is written."""
    calibration = text.calibration()
    ids, rows = calibration[0]["input_ids"], {}
    small = by_scores(model, calibration, 0.5, estfx.score(model, "activation", calibration))

    def prefill(each: Any) -> None:
        with torch.no_grad():
            each(input_ids=ids, use_cache=False)

    def decoding(each: Any) -> None:
        each.generate(ids[:1, :16], max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=256)

    for name, work, tokens in (("prefill", prefill, ids.numel()), ("decoding", decoding, 64)):
        arms = {
            "whole": lambda _, work=work: seconds(lambda: work(model), "cpu"),
            "cut": lambda _, work=work: seconds(lambda: work(small), "cpu"),
        }
        found = ratios(in_turn(arms, 11, left_out=2), "cut")
        whole = found["whole"]  # its seconds over the cut's: the cut's tokens a second over its own
        speeds = {arm: tokens / row["seconds"] for arm, row in found.items()}
        note(rows, name, **speeds, ratio=whole["ratio"], least=whole["ratio_min"], most=whole["ratio_max"])
    return rows


def search(model: Any, text: Any, candidates: int) -> dict[str, Row]:
    """Seconds and compilations of one search, eager and compiled."""
    rows: dict[str, Row] = {}
    scores = estfx.score(model, "activation", text.calibration())
    for compiled in (False, True):
        found = estfx.search(
            model,
            text.calibration()[:1],
            {"parameters": 0.7},
            scores=scores,
            population=100,
            generations=candidates // 100 - 1,
            compile=compiled,
        )
        note(
            rows,
            "compiled" if compiled else "eager",
            candidates=found.candidates,
            seconds=found.seconds,
            seconds_each=found.seconds / found.candidates,
            programs=found.programs,
            compilations=found.compilations,
            loss=found.loss,
            by_scores_alone=found.first_loss,
        )
    return rows


# -- memory --------------------------------------------------------------------------------------------------------


def memory() -> dict[str, Row]:
    """Peak memory of a GPT-2 of the base size, by what is done with it, each in a process of its own."""
    rows: dict[str, Row] = {}
    for what in ("forward", "backward", *BY, "fisher", "cut", "reform"):
        done = subprocess.run([sys.executable, __file__, what], capture_output=True, text=True, check=True)
        before, peak, took = map(float, done.stdout.split()[-3:])
        note(rows, what, gib_before=before, gib_at_most=peak, gib_more=peak - before, seconds=took)
    return rows


def _one(what: str) -> None:
    """Does it, and prints GiB before, GiB at most, and seconds."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    batches = [{"input_ids": torch.randint(50257, (4, 512))} for _ in range(2)]
    units = {f"transformer.h.{i}": {"heads": list(range(6)), "neurons": list(range(1536))} for i in range(12)}
    small = estfx.cut(model, units) if what == "reform" else None
    before = _resident()
    begun = time.perf_counter()
    if what == "forward":
        with torch.no_grad():
            for batch in batches:
                model(**batch, labels=batch["input_ids"], use_cache=False)
    elif what == "backward":
        for batch in batches:
            model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    elif what == "cut":
        estfx.cut(model, units)
    elif small is not None:
        estfx.reform(small, model, batches)
    else:
        estfx.score(model, what, batches)  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(before, peak, time.perf_counter() - begun)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


if __name__ == "__main__":
    _one(sys.argv[1])
