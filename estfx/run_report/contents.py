"""All that a report says, computed once; page, figures and JSON are made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from estfx.run_report.comparison import against, first_dense, warnings_about
from estfx.run_report.curves import Curves, curves_of
from estfx.run_report.facts import facts_of
from estfx.run_report.runs import Run
from estfx.run_report.settings_table import differing
from estfx.run_report.trained_units import TrainedUnits, trained_units

__all__ = ["Contents", "RunContents", "contents_of"]


@dataclass(frozen=True, eq=False)
class RunContents:
    """One run."""

    run: Run
    facts: dict[str, Any]
    curves: Curves
    trained: TrainedUnits | None

    @property
    def label(self) -> str:
        return self.run.label


@dataclass(frozen=True, eq=False)
class Contents:
    """All runs, in the order in which they were named."""

    runs: tuple[RunContents, ...]
    warnings: tuple[str, ...]  # what cannot be compared
    notes: tuple[str, ...]  # what is missing or damaged
    differing_settings: dict[str, list[str]]  # by dotted name, a value for each run

    def to_json(self) -> dict[str, Any]:
        """The same as plain data that JSON can hold; what is not finite is None."""
        data = {
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "runs": [
                {
                    **each.facts,
                    "curves": _curves(each.curves),
                    "trained_units": None if each.trained is None else _trained(each.trained),
                    "environment": each.run.environment,
                    "config": each.run.config,
                }
                for each in self.runs
            ],
        }
        plain: dict[str, Any] = _plain(data)
        return plain


def contents_of(runs: Sequence[Run]) -> Contents:
    """Computes what there is to say about runs."""
    dense = first_dense(runs)
    notes = [f"{run.label} {note}" for run in runs for note in run.notes]
    each = []
    for run in runs:
        trained = trained_units(run)
        if trained is None:
            notes.append(
                f"{run.label} has no made_with.json that can be read, so how often its units were trained is left out."
            )
        elif trained.differing:
            notes.append(
                f"{run.label} was begun with another schedule than it ended with: at {trained.differing} of the "
                f"{trained.steps} steps counted the draws are not those of made_with.json. How often its units were "
                "trained is only an estimate."
            )
        elif trained.ranked and run.schedule is not None:
            notes.append(
                f"{run.label} chose units by the scores of {run.schedule.policy}, of which its folder holds no "
                "history, so how often each was trained is left out."
            )
        facts = facts_of(run) | {"dense": run.dense, "against_dense": against(run, dense)}
        each.append(RunContents(run, facts, curves_of(run), trained))
    return Contents(
        tuple(each), tuple(warnings_about(runs)), tuple(notes), differing([run.config or {} for run in runs])
    )


def _curves(curves: Curves) -> dict[str, Any]:
    return {
        "steps_per_point": curves.steps_per_point,
        "smoothed_over_steps": curves.smoothed_over,
        "training": {**curves.at, "loss": curves.loss, "smoothed": curves.smoothed},
        "held_out": {**curves.held_out_at, "loss": curves.held_out},
    }


def _trained(trained: TrainedUnits) -> dict[str, Any]:
    return {
        "steps_counted": trained.steps,
        "steps_done": trained.of,
        "layers": {
            name: round(float(share), 4) for name, share in zip(trained.layers, trained.share_of_layers, strict=True)
        },
        "roles": {
            each.role: {
                "units": dict(zip(each.layers, each.sizes, strict=True)),
                "shares": dict(zip(each.layers, np.round(each.shares, 4), strict=True)),
                "least": each.least,
                "mean": each.mean,
                "most": each.most,
            }
            for each in trained.roles
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
