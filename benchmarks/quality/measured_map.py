"""The measured map: for each model and length of run, what every preset lost. `estfx plan` quotes it, and the default
preset follows from it.

    python benchmarks/quality/measured_map.py     # writes estfx/schedules/measured_losses.json from the stored runs

An arm is a preset's if its schedule is the preset's, but for where its stages begin. So a change of a preset takes the
runs of the old one off the map.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from behind import Results, Runs
from claims import in_seeds
from compared import claims_of, contests, difference, saved, stored
from experiment import ROOT, Experiment, found
from laws import FITTED, fitted, points
from scipy import stats

from estfx.schedules import PRESETS, FittedLaw, MeasuredLoss, MeasuredLosses, MeasuredRun, preset_of
from estfx.training import RunConfig

__all__ = ["main_experiments", "map_table", "measured", "presets_of"]

PACKAGE = ROOT / "estfx" / "schedules"
SAVED = (0.2, 0.3)  # of the whole model's FLOPs: what is compared saves about a quarter


def presets_of(results: Results) -> dict[str, Runs]:
    """The runs of an experiment by preset."""
    known: dict[str, Runs] = {}
    for runs in results.values():
        one = next(iter(runs.values()))
        config = RunConfig.from_mapping(one["config"])
        name = preset_of(config.schedule.build(config.train.total_steps))
        dense = results.get("dense", {}).get(one["seed"])
        if name is not None and dense is not None and SAVED[0] < saved(one, dense, "model") < SAVED[1]:
            known.setdefault(name, runs)  # the first arm of the experiment that is so
    return known


def measured(experiments: Sequence[tuple[Experiment, Results]]) -> MeasuredLosses:
    """What the experiments show."""
    runs, by_preset = [], []
    for experiment, results in experiments:
        one = next(iter(results["dense"].values()))
        own = presets_of(results)
        by_preset.append(own)
        presets = {name: loss for name, each in own.items() if (loss := _loss(each, results)) is not None}
        short = difference(results.get("dense-short", {}), results["dense"])
        train = one["config"]["train"]
        runs.append(
            MeasuredRun(
                title=experiment.title,
                family=one["config"]["model"]["name"],
                parameters=one["parameters"],
                steps=one["steps"],
                tokens_per_parameter=round(one["tokens"] / one["parameters"], 3),
                tokens_per_step=train["batch_size"] * train["accumulation"] * one["config"]["data"]["seq_len"],
                dense_short=None if short is None else round(short.mean, 6),
                presets=presets,
            )
        )
    held = contests(by_preset, PRESETS)
    ((name, times),) = Counter(least for least, _ in held if least is not None).most_common(1)
    beside = Counter(other for _, tried in held if name in tried for other in tried if other != name)
    runs.sort(key=lambda run: (run.steps, run.tokens_per_parameter))
    return MeasuredLosses(
        default=name,
        default_won=times,
        default_of=sum(name in tried for _, tried in held),
        default_rivals=dict(beside.most_common()),
        laws=tuple(_laws()),
        runs=tuple(runs),
    )


def _loss(runs: Runs, results: Results) -> MeasuredLoss | None:
    above = difference(runs, results["dense"])
    if above is None:
        return None
    low, high = above.interval()
    found_claims = claims_of(runs, results)
    first = min(runs.keys() & results["dense"].keys())
    return MeasuredLoss(
        above_dense=round(above.mean, 6),
        low=round(low, 6) if math.isfinite(low) else None,
        high=round(high, 6) if math.isfinite(high) else None,
        seeds=above.seeds,
        saving=round(saved(runs[first], results["dense"][first], "model"), 4),
        no_worse="not decided" if found_claims is None else found_claims[0].word,
    )


def _laws() -> Iterator[FittedLaw]:
    """The laws in steps of the presets that have one."""
    for preset in FITTED:
        law = fitted(points(preset), "steps", logarithmic=True)
        yield FittedLaw(
            preset=preset,
            family="gpt2",
            intercept=round(law.intercept, 4),
            slope=round(law.slope, 4),
            spread=round(law.spread, 4),
            mean=round(float(np.mean(law.xs)), 4),
            squares=round(float(np.var(law.xs)) * len(law.xs), 4),
            points=len(law.xs),
            quantile=round(float(stats.t.ppf(0.975, len(law.xs) - 2)), 4),
            first=round(2 ** min(law.xs)),
            last=round(2 ** max(law.xs)),
        )


def map_table(known: MeasuredLosses) -> Iterator[str]:
    """A row for each model and length of run, the shortest first."""
    yield f"| steps | tokens a parameter | tokens a step | model | dense for as many FLOPs | {' | '.join(PRESETS)} |"
    yield f"|---|---|---|---|---|{'---|' * len(PRESETS)}"
    for run in known.runs:
        cells = [f"{run.steps:,}", f"{run.tokens_per_parameter:.0f}", f"{run.tokens_per_step:,}", run.title]
        cells.append("" if run.dense_short is None else f"{run.dense_short:.3f}")
        cells += [_told(run.presets.get(preset)) for preset in PRESETS]
        yield f"| {' | '.join(cells)} |"


def _told(loss: MeasuredLoss | None) -> str:
    if loss is None:
        return ""
    if loss.low is None:
        return f"{loss.above_dense:.3f} ({in_seeds(loss.seeds)})"
    word = "" if loss.no_worse == "not decided" else f", *{loss.no_worse}*"
    return f"{loss.above_dense:.3f} [{loss.low:.3f}, {loss.high:.3f}], {loss.seeds}{word}"


def main_experiments(
    every: Iterable[tuple[Experiment, Results]] | None = None,
) -> list[tuple[Experiment, Results]]:
    """Those that are in the table of all sizes, and have been run; of all that there are, or of these."""
    if every is None:
        paths = sorted(found("mini-gpt2").parent.glob("*.yaml"))
        every = [(Experiment.from_yaml(path), stored(path.stem)) for path in paths]
    return [(experiment, results) for experiment, results in every if experiment.main and "dense" in results]


def write(known: MeasuredLosses, folder: Path = PACKAGE) -> None:
    """Writes the map into a folder, a run a line."""
    whole = known.model_dump(mode="json")
    listed = {key: ",\n    ".join(map(json.dumps, whole.pop(key))) for key in ("laws", "runs")}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items()]
    lines += [f"  {json.dumps(key)}: [\n    {rows}\n  ]" for key, rows in listed.items()]
    (folder / "measured_losses.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    known = measured(main_experiments())
    write(known)
    print(*map_table(known), sep="\n")


if __name__ == "__main__":
    main()
