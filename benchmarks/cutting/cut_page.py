"""Makes `docs/measured-cuts.md` from the stored results and `page.md`: python benchmarks/cutting/cut_page.py"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "page"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
OTHER = "Torch-Pruning"
MODELS = {
    "gpt2": "GPT-2",
    "llama": "Llama with grouped queries",
    "llama-mha": "Llama without grouped queries",
}
Rows = dict[str, dict[str, Any]]


def stored(name: str) -> Rows:
    """The figures of the newest result of a script."""
    found = sorted(RESULTS.glob(f"cutting-{name}-cpu-2*.json"))
    if not found:
        raise FileNotFoundError(f"there is no result of {name}")
    rows: Rows = json.loads(found[-1].read_text())["figures"]
    return rows


def perplexity(rows: Rows, name: str) -> str:
    return f"{math.exp(rows[name]['loss']):.2f}" if name in rows else "–"


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def best_of_other(rows: Rows, ratio: str, *, tuned: bool) -> tuple[str, str]:
    """Torch-Pruning's lowest perplexity at a ratio, and how it was reached."""
    start = f"{ratio} {OTHER}, "
    found = {
        name.removeprefix(start).removesuffix(", tuned"): row["loss"]
        for name, row in rows.items()
        if name.startswith(start) and name.endswith(", tuned") == tuned
    }
    if not found:
        return "–", ""
    how = min(found, key=lambda each: found[each])
    return f"{math.exp(found[how]):.2f}", how


def ratios(model: str) -> Iterator[str]:
    """Perplexities of a byte by what was left of the layers' parameters."""
    rows = stored(f"ratios-{model}")
    heads = ("left", "random", "magnitude", "gradient", "activation", "refitted", "search", "refitted", "tuned")
    every = dict.fromkeys(name.split()[0] for name in rows if "%" in name.split()[0])

    def lines() -> Iterator[Sequence[str]]:
        for ratio in every:
            own = [f"{ratio} {by}" for by in ("random", "magnitude", "gradient", "activation")]
            own += [f"{ratio} activation, refitted", f"{ratio} search", f"{ratio} search, refitted"]
            own += [f"{ratio} search, refitted, tuned"]
            plain, how = best_of_other(rows, ratio, tuned=False)
            tuned, _ = best_of_other(rows, ratio, tuned=True)
            yield (ratio.replace("%", " %"), *(perplexity(rows, name) for name in own), f"{plain} ({how})", tuned)

    yield from table((*heads, f"{OTHER}, its best", "tuned"), lines())


def whole(model: str) -> str:
    rows = stored(f"ratios-{model}")
    return f"{perplexity(rows, 'whole')}, and {perplexity(rows, 'whole, tuned')} after as much tuning"


def fails() -> Iterator[str]:
    """What Torch-Pruning could not do."""

    def lines() -> Iterator[Sequence[str]]:
        for model, title in MODELS.items():
            for name, row in stored(f"ratios-{model}").items():
                if name.startswith("fails: ") and "magnitude" in name:
                    yield title, name.rsplit(", ", 1)[1], row["error"]

    yield from table(("model", "asked to narrow", "what happens"), lines())


def over_seeds(name: str) -> Iterator[str]:
    """The table of an experiment with several seeds: means, and differences with their intervals."""
    rows = {key: row for key, row in stored(name).items() if not key.startswith("seed ")}
    first = next(iter(rows))
    keys = [key for key in ("flops", "loss", "calibration_error") if key in rows[first]]
    heads = ["", *(key.replace("_", " ") for key in keys)]
    heads += [f"{key.replace('_', ' ')} minus {first}'s, 95 %" for key in keys if key != "flops"]

    def lines() -> Iterator[Sequence[str]]:
        for what, row in rows.items():
            cells = [what, *(f"{row[key]:.0%}" if key == "flops" else f"{row[key]:.4f}" for key in keys)]
            for key in keys:
                if key != "flops":
                    mean = row.get(f"{key} minus {first}'s")
                    interval = row.get(f"{key} minus {first}'s, interval")
                    cells.append("" if mean is None else f"{mean:+.4f} {interval}")
            yield cells

    yield from table(heads, lines())


def plain(name: str) -> Iterator[str]:
    """A result as it is stored, one row a line."""
    rows = stored(name)
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        text = str(value)
        return text if len(text) <= 120 else f"{text[:119]}…"

    lines = ([what, *(cell(row.get(key, "")) for key in keys)] for what, row in rows.items())
    yield from table(["", *(key.replace("_", " ") for key in keys)], iter(lines))


MAKING: dict[str, Callable[..., Iterator[str] | str]] = {
    "ratios": ratios,
    "whole": whole,
    "title": lambda model: MODELS[model],
    "fails": fails,
    "seeds": over_seeds,
    "plain": plain,
}


def page() -> str:
    """The page, with its tables."""
    text = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")

    def made(match: re.Match[str]) -> str:
        word, *of = match[1].split()
        try:
            found = MAKING[word](*of)
            return found if isinstance(found, str) else "\n".join(found)
        except FileNotFoundError:
            return "Not measured yet."

    return re.sub(r"\{\{ ([^}]+) \}\}", made, text)


if __name__ == "__main__":
    path = ROOT / "docs" / "measured-cuts.md"
    path.write_text(page(), encoding="utf-8")
    print(f"written to {path.relative_to(ROOT)}")
