"""What the page and the README show at once: a figure, a claim, and a line for every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from behind import Results
from compared import claims_of, difference, saved
from experiment import Experiment

__all__ = ["above", "better", "brief", "change", "claim", "in_readme", "minus"]


def brief(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """One line for every experiment: what the schedules that were tried most lose against dense, and what holds."""
    shown = {"dense-short": "dense for as many FLOPs", "est": "EST", "compound": "compound"}
    heads = f"model | steps | tokens a parameter | {' | '.join(shown.values())}"
    yield f"| {heads} | EST is no worse than dense | compound is |"
    yield f"|---|---|---|{'---|' * (len(shown) + 2)}"
    for experiment, results in experiments:
        one = next(iter(results["dense"].values()))
        cells = [above(results, name) for name in shown]
        words = [claim(results, name) for name in ("est", "compound")]
        if any(cells[1:]):
            length = [f"{one['steps']:,}", f"{one['tokens'] / one['parameters']:.0f}"]
            cells = [experiment.title, *length, *cells, *words]
            yield f"| {' | '.join(cells)} |"


def above(results: Results, arm: str) -> str:
    """By how much an arm's loss is above dense's, for reading."""
    return minus(results, arm, "dense")


def claim(results: Results, arm: str) -> str:
    """Whether an arm is no worse than dense, in three words and with its power."""
    found = claims_of(results.get(arm, {}), results)
    return "" if found is None else str(found[0])


def better(results: Results, arm: str) -> str:
    """Whether an arm is shown to lose less than dense for as many FLOPs, in three words and with its power."""
    found = claims_of(results.get(arm, {}), results)
    return "" if found is None else str(found[1])


def minus(results: Results, arm: str, other: str, seeds: str = "") -> str:
    """By how much an arm's loss is above another arm's, over the seeds that both have, or those of `1,2,3` alone."""
    these = [int(seed) for seed in seeds.split(",")] if seeds else None
    found = difference(results.get(arm, {}), results.get(other, {}), seeds=these)
    return "" if found is None else str(found)


def change(results: Results, arm: str, other: str, before: str, other_before: str) -> str:
    """By how much more an arm's loss is above another arm's than that of `before` above `other_before`."""
    old = (1.0, results.get(before, {}), results.get(other_before, {}))
    found = difference(results.get(arm, {}), results.get(other, {}), old)
    return "" if found is None else str(found)


def in_readme(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """What was measured of the same size in both families: that with most seeds, and of those the largest."""
    heads = ("dense for as many FLOPs", "`compound`", "EST", "`compound` minus dense for as many FLOPs")
    yield f"| model | seeds | FLOPs saved | {' | '.join(heads)} | `compound` is as good as dense |"
    yield f"|---|---|---|{'---|' * len(heads)}---|"
    sizes: dict[str, list[tuple[Experiment, Results]]] = {}
    for experiment, results in experiments:
        if claims_of(results.get("compound", {}), results) and claims_of(results.get("est", {}), results):
            sizes.setdefault(experiment.title.split(", ", 1)[1], []).append((experiment, results))
    pairs = [pair for pair in sizes.values() if len(pair) > 1]
    for experiment, results in max(pairs, key=_weight):
        dense, short, compound, est = (results[arm] for arm in ("dense", "dense-short", "compound", "est"))
        saving = saved(est[min(est)], dense[min(dense)], "model")
        losses = (difference(*pair) for pair in ((short, dense), (compound, dense), (est, dense), (compound, short)))
        found = claims_of(compound, results)
        cells = [
            experiment.title,
            str(len(compound)),
            f"{saving:.0%}",
            *(each.figures if each else "" for each in losses),
        ]
        yield f"| {' | '.join([*cells, found[0].spelled_out if found else ''])} |"


def _weight(pair: Sequence[tuple[Experiment, Results]]) -> tuple[int, int]:
    """The fewest seeds of a claim, and the parameters."""
    of_all = [results for _, results in pair]
    seeds = min(len(results[arm]) for results in of_all for arm in ("compound", "est", "dense-short"))
    return seeds, max(next(iter(results["dense"].values()))["parameters"] for results in of_all)
