"""The rows of a sweep as a page, and the differences between two sweeps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from architecture_row import EQUAL, Row, all_of, complete, plain

__all__ = ["differences", "page", "types_found"]

# What other tools say of themselves: the types that they name, and how many that is.
OTHERS = (
    ("Torch-Pruning 1.6.1", "its tests of language models: 9 checkpoints of 3 families", ("llama", "qwen2", "phi3")),
    ("NVIDIA ModelOpt", "attention of Hugging Face models pruned by rules made by hand", ("bert", "gptj")),
    ("AutoParallel", "20 models ran, 14 passed", ()),
)
LONGEST, IN_FULL = 220, 700  # characters of a reason in the table, and in the list of what is not complete


def page(record: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """The markdown page of a sweep's record (`environment` and `rows`), and what others, by title, found otherwise."""
    rows: list[Row] = record["rows"]
    packages = record["environment"]["packages"]
    ran = [row for row in rows if row.get("failed") not in ("build", "run", "time", "process")]
    reasons = _numbered_reasons(rows)
    lines = [
        "# What is narrowed in each model type of transformers",
        "",
        f"{len(rows)} causal language model types of transformers {packages['transformers']}, with torch "
        f"{packages['torch']}. Tiny random models of {len(ran)} could be built and run; {sum(map(complete, rows))} are "
        "complete: layers can be skipped (or mix several residual streams, so that none can be), heads or channels are "
        "narrowed in every kind of layer, neurons in the model if it has any, and in a step of a narrowed stage every "
        "parameter of the running layers has a gradient that has one in the original. The logits of the transformed "
        f"model at full size differ from the original's by at most {_furthest(rows):.0e}, relative.",
        "",
        "*Whole*: how far the graph of a whole layer differs from the layer, values and gradients, relative. *Narrowed "
        "graph*: whether it equals the masked whole in float64. Numbers stand for the reasons below the table. "
        "Made by `python benchmarks/architectures.py`.",
        "",
        "| type | layers (may be skipped) | kinds | narrowed | whole | narrowed graph | s | what stays whole |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row, reasons) for row in rows),
        "",
        "## Reasons",
        "",
        *(f"{number}. {_cell(reason)}" for reason, number in reasons.items()),
        "",
        "## Not complete",
        "",
        *(f"- `{row['type']}`: {_shortcoming(row)}" for row in rows if not complete(row)),
        "",
        "## What others cover",
        "",
        *_others(rows),
        *(line for title, other in others.items() for line in _other_sweep(title, record, other)),
    ]
    return "\n".join(lines) + "\n"


def types_found(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By type, what is found in its layers, and what stays whole if a type is not complete."""
    found = {}
    for row in record["rows"]:
        layers = ["layers"] if any(kind["droppable"] for kind in row.get("kinds", {}).values()) else []
        roles = sorted({plain(role) for role, _ in all_of(row, "axes")})
        found[row["type"]] = {"found": [*layers, *roles], "whole": "" if complete(row) else _shortcoming(row)}
    return found


def _furthest(rows: list[Row]) -> float:
    return max((row["model_difference"] for row in rows if "model_difference" in row), default=0.0)


def _line(row: Row, reasons: dict[str, int]) -> str:
    if "failed" in row:
        return f"| {row['type']} | – | – | – | – | – | – | {_cell(row['failed'] + ': ' + row['error'])} |"
    axes = sorted({f"{role} {size}" for role, size in all_of(row, "axes")})
    kinds = row["kinds"].values()
    droppable = sum(kind["layers"] for kind in kinds if kind["droppable"])
    difference = max(kind["whole_difference"] for kind in kinds)
    cells = [
        row["type"],
        f"{sum(kind['layers'] for kind in kinds)} ({droppable})",
        len(kinds),
        ", ".join(axes) or "–",
        f"{difference:.0e}" if difference else "equal",
        " ".join(_numbers(all_of(row, "unverified"), reasons)) or "equal",
        row["seconds"],
        " ".join(_numbers(all_of(row, "notes"), reasons)),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _shortcoming(row: Row) -> str:
    if "failed" in row:
        return _cell(f"{row['failed']}: {row['error']}", IN_FULL)
    missing = [f"no gradient: {', '.join(row['without_gradient'])}"] if row["without_gradient"] else []
    reasons = dict.fromkeys(_without_places(note) for note in (*all_of(row, "unverified"), *all_of(row, "notes")))
    return _cell("; ".join([*missing, *reasons]) or "neither narrowed nor with a reason: heads or neurons", IN_FULL)


def _others(rows: list[Row]) -> Iterator[str]:
    by_type = {row["type"]: row for row in rows}
    for tool, what, types in OTHERS:
        states = [
            f"`{name}` ({'complete' if complete(by_type[name]) else 'not complete'})"
            for name in types
            if name in by_type
        ]
        yield f"- {tool}: {what}" + (f". Rows of these here: {', '.join(states)}." if states else ".")


def _other_sweep(title: str, record: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    rows = other["rows"]
    yield from ("", f"## {title}", "")
    yield f"{sum(map(complete, rows))} of {len(rows)} types complete (`{other['command']}`)."
    compared = {**record, "rows": [row for row in record["rows"] if row["type"] in {each["type"] for each in rows}]}
    missing = sorted({row["type"] for row in record["rows"]} - {row["type"] for row in rows})
    if missing and "experts" not in title:
        yield f"\nNot there: {', '.join(f'`{name}`' for name in missing)}."
    found: dict[str, list[str]] = {}  # what differs → where
    for where, what in differences(compared, other):
        if where not in found.setdefault(what, []):
            found[what].append(where)
    yield from ("", "Found otherwise than above:" if found else "Nothing is found otherwise than above.", "")
    yield from (f"- {', '.join(f'`{w}`' for w in where)}: {_cell(what, IN_FULL)}" for what, where in found.items())


def _numbered_reasons(rows: list[Row]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for row in rows:
        for note in (*all_of(row, "unverified"), *all_of(row, "notes")):
            reasons.setdefault(_without_places(note), len(reasons) + 1)
    return reasons


def _numbers(notes: list[str], reasons: dict[str, int]) -> list[str]:
    return [f"[{number}]" for number in sorted({reasons[_without_places(note)] for note in notes})]


def _without_places(note: str) -> str:
    """The reason without file, line, names of nodes and sizes, so that the same one reads the same in every model."""
    note = re.sub(r" \(modeling_\w+\.py:\d+\)", "", note)
    note = re.sub(r"(modeling_\w+\.py):\d+", r"\1", note)
    note = re.sub(r"\b\w+ = (\w+?)_?\.\w+", r"\1", note)  # a node: its operator says enough
    note = re.sub(r"\b([a-z_]+?)_\d+\b", r"\1", note)
    note = re.sub(r"a dimension of \d+ ", "a dimension ", note)
    return re.sub(r"\((\d+): ", "(", note)


def _cell(text: str, longest: int = LONGEST) -> str:
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What two sweeps' records say differently, each as (type or package, what); seconds are left out."""
    for name, version in one["environment"]["packages"].items():
        if other["environment"]["packages"].get(name) != version:
            yield name, f"{version} against {other['environment']['packages'].get(name)}"
    rows, others = ({row["type"]: row for row in record["rows"]} for record in (one, other))
    for model_type in sorted(rows.keys() | others.keys()):
        if model_type not in rows or model_type not in others:
            yield model_type, f"only in the {'first' if model_type in rows else 'second'}"
            continue
        for what in _row_differences(rows[model_type], others[model_type]):
            yield model_type, what


def _row_differences(a: Row, b: Row) -> Iterator[str]:
    if complete(a) != complete(b):
        yield f"complete only in the {'first' if complete(a) else 'second'}"
    for key in ("failed", "error"):
        mine, theirs = (_without_places(str(each.get(key))) for each in (a, b))
        if mine != theirs:
            yield f"{key}: {mine} against {theirs}"
    if "failed" in a or "failed" in b:
        return
    if a["without_gradient"] != b["without_gradient"]:
        yield f"without a gradient: {a['without_gradient']} against {b['without_gradient']}"
    mine, theirs = (", ".join(f"{kind['layers']} {name}" for name, kind in each["kinds"].items()) for each in (a, b))
    if mine != theirs:
        yield f"kinds: {mine} against {theirs}"
        return
    for (name, kind), other in zip(a["kinds"].items(), b["kinds"].values(), strict=True):
        yield from (f"{name}: {what}" if "noted" not in what else what for what in _kind_differences(kind, other))


def _kind_differences(a: Row, b: Row) -> Iterator[str]:
    if a["droppable"] != b["droppable"]:
        yield f"may be skipped only in the {'first' if a['droppable'] else 'second'}"
    mine, theirs = (", ".join(f"{role} {size}" for role, size in kind["axes"]) for kind in (a, b))
    if mine != theirs:
        yield f"{mine} against {theirs}"
    whole = [kind["whole_difference"] for kind in (a, b)]
    if (whole[0] <= EQUAL) != (whole[1] <= EQUAL):
        yield f"the whole graph is off by {whole[0]} against {whole[1]}"
    notes = [{_without_places(note) for note in (*kind["unverified"], *kind["notes"])} for kind in (a, b)]
    yield from (f"noted only in the first: {note}" for note in sorted(notes[0] - notes[1]))
    yield from (f"noted only in the second: {note}" for note in sorted(notes[1] - notes[0]))
