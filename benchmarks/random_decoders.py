"""Decoders of random form, thousands of them: is any of them trained wrongly, and what stays whole, for which reasons?

    python benchmarks/random_decoders.py [--count 5000] [--seed 0] [--jobs 1]
    python benchmarks/random_decoders.py --number 17
    python benchmarks/random_decoders.py --form '{"hidden": 8, …}' --number 17

The same generator and oracles as `tests/test_random_decoders.py`, without hypothesis. A run that is stopped goes on
where it was. Whatever is wrong is printed and stored with its number and its form; `--number` looks at one again, and
`--form` at another form with the weights and draws of that number.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402
from drawn_decoders.form import form_of_json, json_of_form  # noqa: E402
from drawn_decoders.oracles import Verdict  # noqa: E402
from drawn_decoders.trials import examined, form_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "random_decoders.json"
EVERY = 20  # decoders after which results are written
Trial = dict[str, Any]


def prepare() -> None:
    torch.set_num_threads(1)
    torch._dynamo.config.fake_tensor_cache_enabled = False  # with sizes left open it costs more than it saves
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def look(numbered: tuple[int, int]) -> Trial:
    seed, number = numbered
    form = form_of(number, seed)
    started = time.perf_counter()
    try:
        verdict = examined(form, number)
    except Exception as error:  # of the decoder itself: a fault of the generator
        verdict = Verdict(wrong=[f"the decoder fails with {type(error).__name__}: {str(error).strip()[:300]}"])
    if number % EVERY == 0:
        gc.collect()
        gc.freeze()  # or each collection would look at all of torch
    seconds = time.perf_counter() - started
    return {"number": number, "form": json_of_form(form), "seconds": seconds, **vars(verdict)}


def trials(numbers: range, seed: int, jobs: int) -> Iterator[Trial]:
    numbered = ((seed, number) for number in numbers)
    if jobs == 1:
        prepare()
        yield from map(look, numbered)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, prepare) as pool:
        yield from pool.imap(look, numbered)


def new_record(seed: int) -> dict[str, Any]:
    return {"seed": seed, "tried": 0, "units_found": 0, "seconds": 0.0, "wrong": [], "refused": {}}


def add(record: dict[str, Any], trial: Trial) -> None:
    record["tried"] += 1
    record["units_found"] += trial["found"]
    record["seconds"] += trial["seconds"]
    for reason in dict.fromkeys(trial["refused"]):
        entry = record["refused"].setdefault(reason, {"decoders": 0, "first": trial["number"]})
        entry["decoders"] += 1
    if trial["wrong"]:
        record["wrong"].append({"number": trial["number"], "what": trial["wrong"], "form": json.loads(trial["form"])})
        print(f"{trial['number']} is wrong: {trial['wrong'][:3]}\n    {trial['form']}", flush=True)


def write(record: dict[str, Any], count: int, into: Path) -> None:
    from estfx.training import environment

    record["refused"] = dict(sorted(record["refused"].items(), key=lambda item: -item[1]["decoders"]))
    command = f"python benchmarks/random_decoders.py --count {count} --seed {record['seed']}"
    whole = {"command": command, "environment": environment(), **record, "seconds": round(record["seconds"])}
    into.write_text(json.dumps(whole, indent=1) + "\n")


def sweep(count: int, seed: int, jobs: int, into: Path) -> None:
    record = new_record(seed)
    if into.exists() and (stored := json.loads(into.read_text()))["seed"] == seed:
        record = {name: stored[name] for name in record}
        print(f"goes on after {record['tried']} decoders", flush=True)
    for trial in trials(range(record["tried"], count), seed, jobs):
        add(record, trial)
        if record["tried"] % EVERY == 0 or record["tried"] == count:
            write(record, count, into)
    refused = sum(entry["decoders"] for entry in record["refused"].values())
    print(f"{record['tried']} tried, {len(record['wrong'])} wrong, {refused} refusals in {record['seconds']:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--into", type=Path, default=RESULTS)
    parser.add_argument("--number", type=int, help="look at this one alone")
    parser.add_argument("--form", help="with --number: in place of its form, this one as JSON")
    options = parser.parse_args()
    if options.number is None:
        sweep(options.count, options.seed, options.jobs, options.into)
        return
    prepare()
    form = form_of_json(options.form) if options.form else form_of(options.number, options.seed)
    print(json_of_form(form))
    verdict = examined(form, options.number)
    print("\n".join(["wrong:", *verdict.wrong, "refused:", *verdict.refused]))


if __name__ == "__main__":
    main()
