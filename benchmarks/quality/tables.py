"""Makes every table and figure of the quality experiments from the stored results: docs/quality.md and its pictures.

    python benchmarks/quality/tables.py [--out docs/quality.md]

Losses are in nats a token of held-out text, of the whole model, at the same positions for all arms. A difference is
taken seed by seed and block by block; its interval holds the middle 95 % of 2,000 bootstrap samples, of seeds and of
blocks. Where a run has a single seed, the interval is of blocks alone.

What dense reaches in as many seconds as another arm takes is not trained: it lies between dense-short and dense, each
with its learning rate decayed over its own steps, and is interpolated linearly in the logarithm of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment import RESULTS, ROOT, Experiment, found

SAMPLES = 2000
ORDER = ("tiny", "deep", "long", "large", "small", "medium", "ablations", "search", "bpe")
Results = dict[str, dict[int, dict[str, Any]]]  # arm → seed


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
    each_SB = np.array([np.subtract(one[seed]["block_losses"], other[seed]["block_losses"]) for seed in seeds])
    rng = np.random.default_rng(0)
    means = []
    for _ in range(SAMPLES):
        rows = rng.integers(len(seeds), size=len(seeds))
        columns = rng.integers(each_SB.shape[1], size=each_SB.shape[1])
        means.append(each_SB[rows][:, columns].mean())
    low, high = np.quantile(means, (0.025, 0.975))
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
    yield f"| arm | seeds | loss | {' | '.join(heads)} | FLOPs saved, model | layers | next line | identifier | copy |"
    yield f"|---|---|---|{'---|' * len(heads)}---|---|---|---|---|"
    for name, arm in experiment.arms.items():
        seeds = results.get(name)
        if not seeds:
            yield f"| {name}: {arm.what} | none yet |{' |' * (len(heads) + 6)}"
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
        for task in ("next line", "identifier", "copy"):
            right = [answer for result in seeds.values() for answer in result["tasks"].get(task, "")]
            cells.append(f"{right.count('1') / len(right):.1%}" if right else "")
        yield f"| {' | '.join(cells)} |"


def _interval(found: tuple[float, float, float, int] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def plot(experiment: Experiment, results: Results, path: Path) -> None:
    """Held-out loss against the FLOPs spent, means over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file from the same results
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, seeds in results.items():
        if experiment.arms[name].stopped is not None:
            continue
        curves = [result["held_out_curve"] for result in seeds.values()]
        steps = [step for step, _ in curves[0]]
        losses = np.mean([[loss for _, loss in curve] for curve in curves], axis=0)
        one = next(iter(seeds.values()))
        axes.plot([_spent(one, step) for step in steps], losses, label=name)
    axes.set_xlabel("FLOPs of the whole model, in steps that train all of it")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_title(experiment.title)
    every = [loss for seeds in results.values() for r in seeds.values() for _, loss in r["held_out_curve"][2:]]
    axes.set_ylim(min(every) - 0.05, max(every) + 0.05)
    axes.legend()
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
    lines = [(folder / "page.md").read_text(encoding="utf-8").rstrip(), ""]
    for path in sorted((folder / "experiments").glob("*.yaml"), key=_place):
        experiment, results = Experiment.from_yaml(path), stored(path.stem)
        if not results:
            continue
        if experiment.beside is not None:
            other = Experiment.from_yaml(found(experiment.beside))
            experiment = experiment.model_copy(update={"arms": {**other.arms, **experiment.arms}})
            results = stored(experiment.beside) | results
        lines += [f"## {experiment.title}", ""]
        against = [arm for arm in ("dense", "dense-short") if arm in experiment.arms]
        lines += [*table(experiment, results, against), ""]
        ratios = [r for seeds in results.values() for r in map(seconds, seeds.values()) if r is not None and r < 0.99]
        if ratios:
            lines += [
                f"Seconds of growing arms over as many whole steps, by medians within each run: {_range(ratios)}.",
                "",
            ]
        picture = arguments.out.parent / "images" / f"quality-{path.stem}.svg"
        plot(experiment, results, picture)
        lines += [f"![Held-out loss against FLOPs](images/{picture.name})", ""]
    arguments.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")


def _place(path: Path) -> tuple[int, str]:
    """Experiments stand in the order of what their names begin with."""
    return ORDER.index(path.stem.split("-")[0]), path.stem


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)} runs)"


if __name__ == "__main__":
    main()
