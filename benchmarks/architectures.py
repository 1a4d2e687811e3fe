"""Every causal language model type of transformers, tiny and random: what is found, and whether the oracles hold.

    python benchmarks/architectures.py [TYPE ...] [--jobs 2] [--seconds 180] [--experts eager]
    python benchmarks/architectures.py --compare benchmarks/results/other.json

Each type is built in a process of its own (`tiny_models.py`), transformed with verification (both oracles on every kind
of layer), and trained for one step of a narrowed stage. A sweep over all types writes `docs/architectures.md` and
`benchmarks/results/architectures.json`; with `--experts` only the latter, under another name, and only of the types
whose mixture of experts has more than one implementation.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from architecture_row import Row, all_of, complete, examine
from architecture_table import differences, page, types_found

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "architectures.md"
TYPES = ROOT / "estfx" / "cli" / "model_types.json"  # what `estfx models` shows
RESULTS = ROOT / "benchmarks" / "results"
OTHER_VERSIONS = ("5.17",)  # of transformers: --into benchmarks/results/architectures-transformers-5.17.json
EXPERTS = ("grouped_mm", "batched_mm", "eager")  # as transformers' ExpertsInterface calls them


def run_apart(model_type: str, seconds: int, experts: str | None) -> Row:
    """Examines a type in a process forked from this one, which has imported what takes long."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: there.send(examine(model_type, experts)))
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            process.kill()
            return {"type": model_type, "failed": "time", "error": f"took more than {seconds} s"}
        row: Row = here.recv()
        return row
    except EOFError:
        process.join()
        return {"type": model_type, "failed": "process", "error": f"no result, exit status {process.exitcode}"}
    finally:
        process.join()


def sweep(types: list[str], options: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    examine("gpt2")  # so that what torch and transformers import when first used is there in every process
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: run_apart(name, options.seconds, options.experts), types):
            if row.get("no_experts"):
                continue
            yield row
            state = row.get("failed") or ("complete" if complete(row) else "partly")
            axes = ", ".join(f"{role} {size}" for role, size in all_of(row, "axes"))
            print(f"{row['type']:28s} {state:9s} {row.get('error', axes)}", flush=True)


def record_of(rows: list[Row]) -> dict[str, Any]:
    from estfx.training import environment

    command = " ".join(["python", "benchmarks/architectures.py", *sys.argv[1:]])
    return {"command": command, "environment": environment(), "rows": rows}


def write_page() -> None:
    """From the results that lie there: the sweep of all types, and others."""
    others = {
        **{f"With transformers {version}": f"architectures-transformers-{version}.json" for version in OTHER_VERSIONS},
        **{f"With {experts} experts": f"architectures-{experts}.json" for experts in EXPERTS[1:]},
    }
    found = {title: RESULTS / name for title, name in others.items() if (RESULTS / name).exists()}
    record = json.loads((RESULTS / "architectures.json").read_text())
    TABLE.write_text(page(record, {title: json.loads(path.read_text()) for title, path in found.items()}))


def write_types() -> None:
    """What `estfx models` shows: what the sweep found, and how large a type's default configuration is."""
    record = json.loads((RESULTS / "architectures.json").read_text())
    packages = record["environment"]["packages"]
    types = {name: {"parameters": default_size(name), **found} for name, found in types_found(record).items()}
    shown = {"transformers": packages["transformers"], "torch": packages["torch"], "types": types}
    TYPES.write_text(json.dumps(shown, indent=1) + "\n")


def default_size(model_type: str) -> int | None:
    """The parameters of a model with the type's default configuration; None if it cannot be built."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type]())
    except Exception as error:  # whatever its own code raises
        print(f"{model_type}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=180, help="limit for one type")
    parser.add_argument("--experts", choices=EXPERTS, help="how mixtures of experts compute; default: transformers'")
    parser.add_argument("--into", type=Path, help="write the results there, whichever types, and no table")
    parser.add_argument("--compare", type=Path, metavar="OTHER.json", help="differences from --into or the last sweep")
    parser.add_argument(
        "--page",
        action="store_true",
        help="write the table, and what estfx models shows, from the results that are there",
    )
    parser.add_argument("--one", action="store_true", help="examine one type here, and print JSON")
    options = parser.parse_args()
    if options.page:
        write_page()
        write_types()
        return
    if options.one:
        print(json.dumps(examine(options.types[0], options.experts)))
        return
    usual = RESULTS / ("architectures.json" if options.experts is None else f"architectures-{options.experts}.json")
    if options.compare is not None:
        first, second = (json.loads(path.read_text()) for path in (options.into or usual, options.compare))
        print("\n".join(map(": ".join, differences(first, second))) or "no differences")
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = options.into or (None if options.types else usual)
    rows: list[Row] = []
    for row in sweep(options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), options):
        rows.append(row)
        record = record_of(rows)
        if path is not None:  # after each row: a sweep that is stopped has what it found
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{sum(map(complete, rows))} of {len(rows)} complete")
    if path == RESULTS / "architectures.json":
        write_page()
        write_types()


if __name__ == "__main__":
    main()
