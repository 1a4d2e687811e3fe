"""A fair rate for each schedule: its losses over a small grid of peaks and shares of decay, and the best of them.

A schedule that is compared at the rate that is best for dense may lose by that alone. So each has the grid, and what
counts is its best loss against dense's best. The grid is of one seed: it chooses rates, and says little of how much is
lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from behind import Results
from compared import rate_of, rules_of, stored
from experiment import Experiment, found

from estfx.settings import SettingsError
from estfx.training import RunConfig

__all__ = ["Rate", "grid_of", "rates_table"]

WHOLE = {"preset": "dense"}
ROLLING = {"preset": "est", "policy": "rolling", "kept_units": "as_is"}
KINDS: dict[str, dict[str, Any]] = {  # as they are called in the table, and their settings
    "dense": WHOLE,
    "dense for as many FLOPs": WHOLE,
    "EST": {"preset": "est"},
    "EST with a rolling window": ROLLING,
    "EST with a rolling window, layers as copies": ROLLING | {"joining_layers": "copies", "draws": "shared"},
    "compound": {"preset": "compound"},
    "a quarter of the width": {"preset": "growing"},
    "half of all, then the whole": {
        "stages": [{"start": 0, "layers": 0.5, "heads": 0.5, "neurons": 0.5}, {"start": 1}],
        "resample_every": "never",
        "kept_units": "as_is",
        "joining_layers": "copies",
    },
}


@dataclass(frozen=True, order=True)
class Rate:
    """How a learning rate goes: up to a peak, and down over the last share of the run."""

    peak: float
    decay_share: float

    def __str__(self) -> str:
        return f"{self.peak * 1000:g}e-3, {self.decay_share:.0%}"


Grid = dict[str, dict[Rate, float]]  # by the kind of schedule, the held-out loss


def grid_of(results: Results, whole_steps: int, seed: int = 0) -> Grid:
    """The losses of a seed's runs. Runs of the whole model for fewer steps than `whole_steps` are dense-short's."""
    grid: Grid = {}
    for run in (runs[seed] for runs in results.values() if seed in runs):
        kind = _kind(run, whole_steps)
        if kind is not None:
            grid.setdefault(kind, {})[Rate(*rate_of(run))] = float(np.mean(run["block_losses"]))
    return grid


def _kind(run: dict[str, Any], whole_steps: int) -> str | None:
    config = RunConfig.from_mapping(run["config"])
    if run["steps"] < config.train.total_steps or config.train.learning_rate_falls_with != "steps":
        return None  # stopped before its rate fell; or that falls in another way
    if all(stage.whole for stage in config.schedule.build(config.train.total_steps).stages):
        return "dense" if run["steps"] == whole_steps else "dense for as many FLOPs"
    own = rules_of(config)
    kinds = {what: RunConfig.from_mapping(run["config"] | {"schedule": KINDS[what]}) for what in KINDS}
    return next((what for what, kind in kinds.items() if rules_of(kind) == own), None)


def rates_table(name: str) -> Iterator[str]:
    """The grid of an experiment, with the best of each schedule, and what that loses against the best of dense."""
    experiment = Experiment.from_yaml(found(name))
    if experiment.beside is None:
        raise SettingsError(f"{name} has no experiment beside it, whose dense it could be compared with; set `beside`.")
    beside = stored(experiment.beside)
    grid = grid_of(beside | stored(name), next(iter(beside["dense"].values()))["steps"])
    rates = sorted({rate for row in grid.values() for rate in row})
    least_of_dense = min(grid["dense"].values())
    yield f"| {experiment.title} | {' | '.join(map(str, rates))} | best minus dense's best | perhaps better with |"
    yield f"|{'---|' * (len(rates) + 3)}"
    for what in KINDS:
        row = grid.get(what, {})
        if not row:
            continue
        least = min(row.values())
        cells = [_cell(row.get(rate), least) for rate in rates]
        yield f"| {' | '.join([what, *cells, f'{least - least_of_dense:+.4f}', _untried(row)])} |"


def _cell(loss: float | None, least: float) -> str:
    if loss is None:
        return ""
    return f"**{loss:.4f}**" if loss == least else f"{loss:.4f}"


def _untried(row: dict[Rate, float]) -> str:
    """What may be better than the best rate: where the cells beside it, along either setting, end."""
    best = min(row, key=lambda rate: row[rate])
    found = []
    for tried, own, what, lower, higher in (
        ({rate.peak for rate in row if rate.decay_share == best.decay_share}, best.peak, "peak", "lower", "higher"),
        ({rate.decay_share for rate in row if rate.peak == best.peak}, best.decay_share, "fall", "shorter", "longer"),
    ):
        if len(tried) == 1:
            found.append(f"another {what}")
        else:
            found += [f"a {word} {what}" for word, end in ((lower, min(tried)), (higher, max(tried))) if own == end]
    return ", ".join(found)
