"""Cuts every causal language model type of transformers: half of the heads and neurons, one layer less.

    python benchmarks/cut_architectures.py [TYPE ...] [--jobs 2] [--seconds 240]

Each tiny model (`tiny_models.py`) is cut by `estfx.cut`, which compares the result with the masked whole. Then the cut
is saved and loaded again, its outputs compared to the bit, and it writes 20 tokens greedily, with its KV cache and
without: they must be the same, wherever they are so for the whole model. Where all three cannot be cut at once, each is
tried alone. A sweep over all types writes `benchmarks/results/cut_architectures.json` and `docs/cut-architectures.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_inputs import example_inputs
from tiny_models import tiny_model
from torch import nn

import estfx
from estfx.tracing import without_cache

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cut-architectures.md"
RESULTS = ROOT / "benchmarks" / "results" / "cut_architectures.json"
KINDS = ("heads", "neurons", "layers")
Row = dict[str, Any]


def chosen(report: estfx.Report, kinds: tuple[str, ...]) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """Random units, about half of each role, alike in number in all layers; and all layers but one in the middle."""
    draw = random.Random(0)
    names = [layer.name for layer in report.layers]
    kinds_of = Counter(layer.program for layer in report.layers)
    may_go = [layer for layer in report.layers if layer.droppable]
    often = [layer for layer in may_go if kinds_of[layer.program] > 1]  # else the cut may lack what its cache asks for
    if "layers" in kinds and may_go:
        names.remove((often or may_go)[len(often or may_go) // 2].name)
    units: dict[str, dict[str, list[int]]] = {}
    for layer in report.layers:
        for axis in layer.axes:
            kind = "neurons" if axis.role.startswith("neurons") else "heads"
            if kind in kinds and layer.name in names:
                kept = sorted(draw.sample(range(axis.size), max(1, axis.size // 2)))
                units.setdefault(layer.name, {})[axis.role] = kept
    return units, names


def has(report: estfx.Report) -> set[str]:
    """Which kinds of parts a model has that could be left out."""
    kinds = {"neurons" if axis.role.startswith("neurons") else "heads" for x in report.layers for axis in x.axes}
    return kinds | ({"layers"} if sum(layer.droppable for layer in report.layers) > 1 else set())


def one_cut(model: nn.Module, report: estfx.Report, kinds: tuple[str, ...], inputs: Any) -> Row:
    units, names = chosen(report, kinds)
    begun = time.perf_counter()
    try:
        made = estfx.cut(model, units, layers=names, example_inputs=inputs)
    except estfx.EstfxError as error:
        return {"refused": str(error), "seconds": round(time.perf_counter() - begun, 1)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}", "seconds": round(time.perf_counter() - begun, 1)}
    record = estfx.cut_record(made)
    row: Row = {
        "form": record.form,
        "tries": record.tries,
        "error": record.error,
        "edits": [str(edit) for edit in record.edits],
        "seconds": round(time.perf_counter() - begun, 1),
        "parameters": sum(p.numel() for p in made.parameters()) / sum(p.numel() for p in model.parameters()),
    }
    row["loaded"] = loaded_again(made, inputs)
    row["cache"] = same_with_cache(model, made)
    return row


def loaded_again(made: nn.Module, inputs: Any) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            made.save_pretrained(folder)  # type: ignore[operator]
            again = estfx.load(folder).eval()
        made.eval()
        given = inputs or {"input_ids": torch.arange(1, 12)[None]}
        with torch.no_grad():
            given = without_cache(made, given)
            want, got = made(**given).logits, again(**given).logits
        return "equal" if torch.equal(want, got) else f"differs by {float((want - got).abs().max()):.1e}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def same_with_cache(model: nn.Module, made: nn.Module) -> str:
    whole, cut = (written(each) for each in (model, made))
    if whole == "equal":
        return cut
    return f"as the whole: {whole}"[:200] if cut != "equal" else cut


def written(model: nn.Module) -> str:
    try:
        model.eval()
        given = torch.arange(3, 9)[None]
        settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            first, second = (model.generate(given, use_cache=use, **settings) for use in (True, False))  # type: ignore[operator]
        return "equal" if torch.equal(first, second) else "other tokens"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"


def examine(model_type: str) -> Row:
    torch.set_num_threads(1)
    row: Row = {"type": model_type}
    try:
        model = tiny_model(model_type).eval()
        inputs = example_inputs(model_type, model)
        report = estfx.inspect(model, inputs)
    except Exception as error:
        return {**row, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    row["has"] = sorted(has(report))
    row["together"] = one_cut(model, report, KINDS, inputs)
    if "form" not in row["together"]:
        row["alone"] = {kind: one_cut(model, report, (kind,), inputs) for kind in KINDS if kind in row["has"]}
    return row


def run_apart(model_type: str, seconds: int) -> Row:
    """Examines a type in a process forked from this one, which has imported what takes long."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: there.send(examine(model_type)))
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            process.kill()
            return {"type": model_type, "failed": f"took more than {seconds} s"}
        row: Row = here.recv()
        return row
    except EOFError:
        process.join()
        return {"type": model_type, "failed": f"no result, exit status {process.exitcode}"}
    finally:
        process.join()


def in_words(row: Row) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][:150]}"
    cut = row["together"]
    if "form" in cut:
        return f"{cut['form']}, {cut['tries']} tries, {cut['seconds']} s, loaded {cut['loaded']}, cache {cut['cache']}"
    alone = {kind: each.get("form", "no") for kind, each in row.get("alone", {}).items()}
    return f"together no: {(cut.get('refused') or cut.get('failed'))[:250]} | {alone}"


# -- the page ----------------------------------------------------------------------------------------------------------


def page(record: Row) -> str:
    """The markdown page of a sweep."""
    rows: list[Row] = record["rows"]
    packages = record["environment"]["packages"]
    ran = [row for row in rows if "failed" not in row]
    cut = [row for row in ran if "form" in row["together"]]
    forms = Counter(row["together"]["form"] for row in cut)
    tries = sorted(row["together"]["tries"] for row in cut)
    right = [row for row in cut if row["together"]["loaded"] == "equal"]
    cached = Counter("equal" if row["together"]["cache"] == "equal" else "other" for row in cut)
    lines = [
        "# What can be cut out of each model type of transformers",
        "",
        f"{len(rows)} causal language model types of transformers {packages['transformers']}, with torch "
        f"{packages['torch']}, as tiny random models. Of {len(ran)} that could be built and run, half the heads (or "
        "channels), half the neurons and one layer were cut out at once, of whatever the type has of these. "
        f"**{len(cut)} could be cut**: {forms['configuration']} by a configuration, {forms['attributes']} by numbers "
        "that their code reads. Each cut was compared with the masked whole before it was returned. "
        f"Saved and loaded, {len(right)} gave the same outputs to the bit. Twenty tokens that were written with a KV "
        f"cache are those that are written without one for {cached['equal']}. The table has the others.",
        "",
        f"The search looked at {tries[len(tries) // 2] if tries else 0} candidates at the median, and at "
        f"{tries[-1] if tries else 0} at most.",
        "",
        "*Left*: the share of the parameters in the cut. *Candidates*: models that were built, or runs of a layer, "
        "until one was right. Where not all could be cut at once, the last column says what could be alone, and why. "
        "Made by `python benchmarks/cut_architectures.py`. [How to cut](how-to/cut.md).",
        "",
        "| type | has | form | left | candidates | s | loaded again | with a cache | what could not be cut |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(line_of, rows),
    ]
    return "\n".join(lines) + "\n"


def line_of(row: Row) -> str:
    if "failed" in row:
        return f"| {row['type']} | – | – | – | – | – | – | – | {in_a_cell(row['failed'])} |"
    cut = row["together"]
    cells = [row["type"], ", ".join(row["has"])]
    if "form" in cut:
        cells += [cut["form"], f"{cut['parameters']:.0%}", str(cut["tries"]), str(cut["seconds"])]
        cells += [in_a_cell(cut["loaded"]), in_a_cell(cut["cache"]), ""]
    else:
        alone = [kind for kind, each in row.get("alone", {}).items() if "form" in each]
        why = in_a_cell(cut.get("refused") or cut.get("failed") or "")
        cells += ["no", "–", "–", str(cut["seconds"]), "–", "–", f"alone: {', '.join(alone) or 'nothing'}. {why}"]
    return "| " + " | ".join(cells) + " |"


def in_a_cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= 260 else text[:259] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=240, help="limit for one type")
    parser.add_argument("--go-on", action="store_true", help="of a sweep that was stopped: go on behind its last type")
    parser.add_argument("--page", action="store_true", help="write the page from the results that are there")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text())))
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from estfx.training import environment

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    examine("gpt2")  # so that what torch and transformers import when first used is there in every process
    types = options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    before = json.loads(RESULTS.read_text())["rows"] if options.go_on else []
    known = {row["type"]: row for row in before}
    rows: list[Row] = []
    command = " ".join(["python", "benchmarks/cut_architectures.py", *sys.argv[1:]])
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: known.get(name) or run_apart(name, options.seconds), types):
            rows.append(row)
            print(f"{row['type']:28s} {in_words(row)}", flush=True)
            if not options.types:
                record = {"command": command, "environment": environment(), "rows": rows}
                RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(Counter(row.get("together", {}).get("form", "not all at once") for row in rows))
    if not options.types:
        PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
