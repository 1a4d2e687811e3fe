"""Makes every table and figure of the quality experiments from the stored results: docs/quality.md, its record
`docs/quality-record.md`, and the pictures.

    python benchmarks/quality/tables.py [--out docs/quality.md]

Losses are in nats a token of held-out text, of the whole model, at the same positions for all arms. A difference is
taken seed by seed and block by block; its interval holds the middle 95 % of 2,000 bootstrap samples, of seeds and of
blocks. Where a run has a single seed, the interval is of blocks alone.

What dense reaches in as many seconds as another arm takes is not trained: it lies between dense-short and dense, each
with its learning rate decayed over its own steps, and is interpolated linearly in the logarithm of the steps. So is the
number of steps after which dense reaches an arm's loss, from which follows what the arm saves at equal loss.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from behind import Results, lag_table, lags_over_time, losses_above, steps_needed
from experiment import RESULTS, ROOT, Experiment, found

SAMPLES = 2000
ORDER = ("base", "mini", "small", "medium", "tiny", "deep", "long", "ablations", "search", "bpe")
# arms of the table of all sizes: those that train less than the whole for a while
SMALLER = ("est", "constant", "grown", "stacked", "compound-at-once", "compound")


def stored(name: str) -> Results:
    """What there is of an experiment."""
    found: Results = {}
    for path in sorted((RESULTS / name).glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["arm"], {})[result["seed"]] = result
    return found


def difference(one: dict[int, Any], other: dict[int, Any]) -> tuple[float, float, float, int] | None:
    """Mean difference of losses, the ends of its interval, and how many seeds both have; None without any."""
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    each_SB = losses_above(one, other, seeds)
    low, high = np.quantile(_means_of_samples(each_SB), (0.025, 0.975))
    return float(each_SB.mean()), float(low), float(high), len(seeds)


def at_equal_seconds(seeds: dict[int, Any], results: Results) -> dict[int, Any] | None:
    """By seed, dense's losses in as many seconds as the arm's runs take; None if that is not known.

    The arm's seconds are those of `seconds`, a median over its runs.
    """
    ratios = [ratio for ratio in map(seconds, seeds.values()) if ratio is not None]
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    both = dense.keys() & short.keys()
    if not ratios or not both:
        return None
    first = min(both)
    share = short[first]["steps"] / dense[first]["steps"]
    weight = math.log(float(np.median(ratios)) / share) / math.log(1 / share)  # 0 at dense-short, 1 at dense
    if not 0 <= weight <= 1:
        return None
    return {
        seed: {
            "block_losses": (1 - weight) * np.array(short[seed]["block_losses"])
            + weight * np.array(dense[seed]["block_losses"])
        }
        for seed in both
    }


def saved_at_equal_loss(seeds: dict[int, Any], results: Results) -> tuple[float, float, float] | None:
    """What an arm saves of the FLOPs with which dense reaches the arm's loss, and the ends of its interval.

    None unless dense and dense-short are known for one of the arm's seeds, with dense the better of the two.
    """
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    same = sorted(seeds.keys() & dense.keys() & short.keys())
    if not same:
        return None
    first = same[0]
    spent = seeds[first]["whole_steps"]["model"] / dense[first]["whole_steps"]["model"]
    share = short[first]["steps"] / dense[first]["steps"]
    lost_SB, lost_by_short_SB = (losses_above(arm, dense, same) for arm in (seeds, short))

    def saving(lost: float, lost_by_short: float) -> float:
        return float(1 - spent / steps_needed(lost, lost_by_short, share))

    if lost_by_short_SB.mean() <= 0:
        return None
    samples = list(map(saving, _means_of_samples(lost_SB), _means_of_samples(lost_by_short_SB)))
    low, high = np.quantile(samples, (0.025, 0.975))
    return saving(lost_SB.mean(), lost_by_short_SB.mean()), float(low), float(high)


def _means_of_samples(each_SB: np.ndarray) -> np.ndarray:
    """The mean of each sample of seeds and of blocks."""
    seeds_NS, blocks_NB = _samples(each_SB.shape)
    means: np.ndarray = ((seeds_NS @ each_SB) * blocks_NB).sum(1) / each_SB.size
    return means


@functools.cache
def _samples(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed, and each block, is in each of the samples, drawn with replacement."""
    rng = np.random.default_rng(0)
    counts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for _ in range(SAMPLES):
        for size, of_each in zip(shape, counts, strict=True):
            of_each.append(np.bincount(rng.integers(size, size=size), minlength=size).astype(float))
    return np.stack(counts[0]), np.stack(counts[1])


def saved(result: dict[str, Any], dense: dict[str, Any], part: str) -> float:
    """The share of the dense run's FLOPs that a run did not spend, in the layers or in the model."""
    return float(1 - result["whole_steps"][part] / dense["whole_steps"][part])


def seconds(result: dict[str, Any]) -> float | None:
    """Seconds of the run's steps over those of as many whole ones, by its own medians; None without a whole stage."""
    stages = result["stages"]
    whole = [s["seconds_per_step"] for s in stages if s["flops_of_whole_model"] == 1.0]
    if not whole or any(s["seconds_per_step"] is None for s in stages):
        return None
    spent = sum(s["seconds_per_step"] * (s["stop"] - s["start"]) for s in stages)
    return float(spent / (whole[0] * stages[-1]["stop"]))


def table(experiment: Experiment, results: Results, against: Sequence[str]) -> Iterator[str]:
    """One line an arm."""
    heads = [f"loss minus {other}'s" for other in against]
    if len(against) == 2:
        heads.append("minus dense's in equal seconds")
    heads += ["FLOPs saved, model", "layers", "seconds saved"]
    if len(against) == 2:
        heads.append("FLOPs saved at equal loss")
    yield f"| arm | seeds | loss | {' | '.join(heads)} | next line | identifier | copy |"
    yield f"|---|---|---|{'---|' * len(heads)}---|---|---|"
    for name, arm in experiment.arms.items():
        seeds = results.get(name)
        if not seeds:
            yield f"| {name}: {arm.what} | none yet |{' |' * (len(heads) + 4)}"
            continue
        losses = [np.mean(result["block_losses"]) for result in seeds.values()]
        cells = [f"{name}: {arm.what}", str(len(seeds)), f"{np.mean(losses):.4f}"]
        for other in against:
            cells.append(_interval(None if other == name else difference(seeds, results.get(other, {}))))
        if len(against) == 2:
            equal = None if name in against else at_equal_seconds(seeds, results)
            cells.append(_interval(difference(seeds, equal or {})))
        first = next(iter(seeds))
        dense = results.get("dense", {}).get(first)
        for part in ("model", "layers"):
            cells.append("" if dense is None else f"{saved(seeds[first], dense, part):.1%}")
        cells.append(_seconds_saved(seeds))
        if len(against) == 2:
            cells.append("" if name in against else _saving(saved_at_equal_loss(seeds, results)))
        for task in ("next line", "identifier", "copy"):
            right = [answer for result in seeds.values() for answer in result["tasks"].get(task, "")]
            cells.append(f"{right.count('1') / len(right):.1%}" if right else "")
        yield f"| {' | '.join(cells)} |"


def _interval(found: tuple[float, float, float, int] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def _seconds_saved(seeds: dict[int, Any]) -> str:
    """The median of an arm's runs, against as many steps of the whole; nothing where none of its steps is smaller."""
    ratios = [ratio for ratio in map(seconds, seeds.values()) if ratio is not None and ratio != 1.0]
    return f"{1 - np.median(ratios):.1%}" if ratios else ""


def _saving(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    return "none" if found[0] < 0 else f"{found[0]:.1%} [{found[1]:.1%}, {found[2]:.1%}]"


def brief(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """One line for every experiment: what the schedules that were tried most lose against dense."""
    shown = {"dense-short": "dense for as many FLOPs", "est": "EST", "compound": "compound"}
    yield f"| model | tokens a parameter | {' | '.join(shown.values())} |"
    yield f"|---|---|{'---|' * len(shown)}"
    for experiment, results in experiments:
        one = next(iter(results["dense"].values()))
        cells = [_with_seeds(difference(results.get(name, {}), results["dense"])) for name in shown]
        if any(cells[1:]):
            yield f"| {experiment.title} | {one['tokens'] / one['parameters']:.0f} | {' | '.join(cells)} |"


def _with_seeds(against: tuple[float, float, float, int] | None) -> str:
    if against is None:
        return ""
    mean, low, high, seeds = against
    return f"{mean:.3f} [{low:.3f}, {high:.3f}], {seeds} seed{'s' * (seeds > 1)}"


def summary(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """One line for every experiment and arm that is smaller than dense for a while."""
    heads = (
        "seeds",
        "loss minus dense's",
        "holds",
        "minus dense-short's",
        "minus dense's in equal seconds",
        "FLOPs saved, model",
        "layers",
        "seconds saved",
        "FLOPs saved at equal loss",
    )
    yield f"| model | tokens a parameter | arm | {' | '.join(heads)} |"
    yield f"|---|---|---|{'---|' * len(heads)}"
    for experiment, results in experiments:
        dense, short = results["dense"], results.get("dense-short", {})
        one = next(iter(dense.values()))
        for name in SMALLER:
            seeds = results.get(name, {})
            against = difference(seeds, dense)
            if against is None:
                continue
            cells = [
                experiment.title,
                f"{one['tokens'] / one['parameters']:.0f}",
                name,
                str(against[3]),
                _interval(against),
                "yes" if against[1] <= 0 else "no",
                _interval(difference(seeds, short)),
                _interval(difference(seeds, at_equal_seconds(seeds, results) or {})),
                *(f"{saved(seeds[min(seeds)], one, part):.1%}" for part in ("model", "layers")),
                _seconds_saved(seeds),
                _saving(saved_at_equal_loss(seeds, results)),
            ]
            yield f"| {' | '.join(cells)} |"


def plot(experiment: Experiment, results: Results, path: Path) -> None:
    """Held-out loss against the FLOPs spent, and how many steps the arms are behind dense: means over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file from the same results
    from matplotlib import pyplot

    dense = results.get("dense", {})
    lags = {name: lag for name, seeds in results.items() if (lag := lags_over_time(seeds, dense))}
    width = 12 if lags else 7
    figure, panels = pyplot.subplots(1, 1 + bool(lags), figsize=(width, 4.2), layout="constrained", squeeze=False)
    axes = panels[0, 0]
    colours = {name: pyplot.cm.tab20(number % 20) for number, name in enumerate(results)}
    for name, seeds in results.items():
        if experiment.arms[name].stopped is not None:
            continue
        curves = [result["held_out_curve"] for result in seeds.values()]
        steps = [step for step, _ in curves[0]]
        losses = np.mean([[loss for _, loss in curve] for curve in curves], axis=0)
        one = next(iter(seeds.values()))
        axes.plot([_spent(one, step) for step in steps], losses, label=name, color=colours[name])
    axes.set_xlabel("FLOPs of the whole model, in steps that train all of it")
    axes.set_ylabel("held-out loss, nats a token")
    every = [
        loss
        for seeds in results.values()
        for r in seeds.values()
        for _, loss in r["held_out_curve"][len(r["held_out_curve"]) // 3 :]
    ]
    axes.set_ylim(min(every) - 0.05, float(np.quantile(every, 0.9)))
    for name, lag in lags.items():
        panels[0, 1].plot(*zip(*lag, strict=True), color=colours[name])
    if lags:
        panels[0, 1].set_xlabel("steps of the run, until the learning rate falls")
        panels[0, 1].set_ylabel("steps behind dense")
    figure.legend(loc="outside right upper")
    figure.suptitle(experiment.title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _spent(result: dict[str, Any], step: int) -> float:
    shares = ((s["flops_of_whole_model"], s["start"], s["stop"]) for s in result["stages"])
    return sum(share * (min(step, stop) - start) for share, start, stop in shares if step > start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality.md")
    arguments = parser.parse_args()
    folder = Path(__file__).parent
    every = [
        (path.stem, Experiment.from_yaml(path), stored(path.stem))
        for path in sorted((folder / "experiments").glob("*.yaml"), key=_place)
    ]
    main_ones = [(experiment, results) for _, experiment, results in every if experiment.main and "dense" in results]
    lags, sections = [], []
    for name, experiment, own in every:
        if not own:
            continue
        results = own
        if experiment.beside is not None:
            other = Experiment.from_yaml(found(experiment.beside))
            experiment = experiment.model_copy(update={"arms": {**other.arms, **experiment.arms}})
            results = stored(experiment.beside) | own
        lags.append((experiment.title, own, results))
        sections += [f"## {experiment.title}", ""]
        against = [arm for arm in ("dense", "dense-short") if arm in experiment.arms]
        sections += [*table(experiment, results, against), ""]
        picture = arguments.out.parent / "images" / f"quality-{name}.svg"
        plot(experiment, results, picture)
        sections += [f"![Held-out loss against FLOPs, and steps behind dense](images/{picture.name})", ""]
    words = {"brief": brief(main_ones), "summary": summary(main_ones), "lags": lag_table(lags)}
    filled = {word: "\n".join(lines) for word, lines in words.items()}
    record = arguments.out.with_name(f"{arguments.out.stem}-record.md")
    for source, path, more in (("page.md", arguments.out, []), ("record.md", record, ["", *sections])):
        page = (folder / source).read_text(encoding="utf-8")
        for word, lines in filled.items():
            page = page.replace(f"{{{{ {word} }}}}", lines)
        path.write_text("\n".join([page.rstrip(), *more]).rstrip() + "\n", encoding="utf-8")
        print(f"written to {path}")


def _place(path: Path) -> tuple[int, str]:
    """Experiments stand in the order of what their names begin with."""
    return ORDER.index(path.stem.split("-")[0]), path.stem


if __name__ == "__main__":
    main()
