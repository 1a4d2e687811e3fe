"""Reads run folders, finished or not; what cannot be read is left out, and a note says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from estfx.errors import EstfxError
from estfx.schedules import Schedule
from estfx.settings import SettingsError, parse_json, parse_yaml

__all__ = ["Run", "Steps", "read_runs"]

METRICS, CONFIG = "metrics.jsonl", "config.yaml"
_COLUMNS = ("step", "stage", "loss", "seconds", "tokens", "flops")  # of a step, that every version has written


@dataclass(frozen=True, eq=False)
class Steps:
    """The optimizer steps that were done, in order; a column each."""

    step: NDArray[np.int64]
    stage: NDArray[np.int64]  # from 1
    loss: NDArray[np.float64]  # nats a token
    seconds: NDArray[np.float64]
    tokens: NDArray[np.int64]
    flops: NDArray[np.float64]  # of the whole model, forward and backward
    layers: NDArray[np.int64] | None  # that ran
    compiled: NDArray[np.int64] | None  # graphs since the step before

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder holds. None stands for a file that is missing or damaged; `notes` say which, and why."""

    path: Path
    label: str
    steps: Steps
    held_out: tuple[tuple[int, float], ...]  # steps done, loss of the whole model in nats a token
    summary: dict[str, Any] | None
    config: dict[str, Any] | None
    config_text: str | None
    environment: dict[str, Any] | None
    made_with: dict[str, Any] | None
    schedule: Schedule | None
    notes: tuple[str, ...] = field(default=())

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def dense(self) -> bool:
        """Whether every step trains the whole model."""
        return self.schedule is not None and all(stage.whole for stage in self.schedule.stages)

    @property
    def steps_planned(self) -> int | None:
        return None if self.schedule is None else self.schedule.total_steps

    def settings(self, section: str) -> dict[str, Any]:
        """A section of the configuration; empty if it is not there."""
        found = (self.config or {}).get(section)
        return found if isinstance(found, dict) else {}


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads the folders, each under a name of its own. Raises SettingsError for one that holds no run or no steps."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise SettingsError("name the folder of at least one run, as `estfx train --out` wrote it.")
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise SettingsError(f"the run {paths[number]} is named twice.")
    names = [place.name for place in places]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [_read_run(path, label) for path, label in zip(paths, labels, strict=True)]


def _read_run(path: Path, label: str) -> Run:
    if path.is_file():
        raise SettingsError(f"{path} is a file; name the folder of a run, as `estfx train` wrote it.")
    if not path.is_dir():
        raise SettingsError(f"{path}: there is no such folder; name the folder of a run, as `estfx train` wrote it.")
    if not any((path / name).exists() for name in (METRICS, CONFIG)):
        raise SettingsError(
            f"{path} holds no run: there is neither {METRICS} nor {CONFIG} in it. `estfx train --out DIR` writes one."
        )
    notes: list[str] = []
    lines = _metrics(path / METRICS, notes)
    by_step = {line["step"]: line for line in lines if line["kind"] == "step"}
    if not by_step:
        raise SettingsError(f"{path} holds a run without metrics: no step of it stands in {METRICS} yet.")
    steps = _steps([by_step[step] for step in sorted(by_step)])
    held_out = {line["step"]: float(line["held_out_loss"]) for line in lines if line["kind"] == "eval"}
    made_with = _mapping(path / "made_with.json", parse_json, [])
    config = _mapping(path / CONFIG, parse_yaml, notes)
    schedule = _schedule(made_with, config)
    summary = _mapping(path / "summary.json", parse_json, [])
    if summary is None:
        planned = "" if schedule is None or schedule.total_steps is None else f" of {schedule.total_steps}"
        notes.append(
            f"is not finished: it has no whole summary.json, so it is still going or was stopped. Shown are the "
            f"{len(steps)}{planned} steps so far."
        )
    return Run(
        path=path,
        label=label,
        steps=steps,
        held_out=tuple(sorted(held_out.items())),
        summary=summary,
        config=config,
        config_text=(path / CONFIG).read_text(encoding="utf-8", errors="replace") if config is not None else None,
        environment=_mapping(path / "environment.json", parse_json, notes),
        made_with=made_with,
        schedule=schedule,
        notes=tuple(notes),
    )


def _metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines that are whole."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    good, bad = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = parse_json(line)
        except ValueError:
            values = None
        if _is_metric(values):
            good.append(values)
        else:
            bad.append(number)
    if bad:
        which = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        notes.append(f"has damaged or half-written lines in {METRICS}, which are left out: {which}.")
    return good


def _is_metric(values: object) -> bool:
    if not isinstance(values, dict):
        return False
    needed = {"step": _COLUMNS, "eval": ("step", "held_out_loss")}.get(str(values.get("kind")))
    return needed is not None and all(isinstance(values.get(name), int | float) for name in needed)


def _steps(lines: Sequence[dict[str, Any]]) -> Steps:
    def whole(name: str) -> NDArray[np.int64] | None:
        values = [line.get(name) for line in lines]
        return np.array(values, dtype=np.int64) if all(isinstance(value, int) for value in values) else None

    columns: dict[str, Any] = {name: np.array([line[name] for line in lines]) for name in _COLUMNS}
    for name in ("step", "stage", "tokens"):
        columns[name] = columns[name].astype(np.int64)
    for name in ("loss", "seconds", "flops"):
        columns[name] = columns[name].astype(np.float64)
    return Steps(**columns, layers=whole("layers"), compiled=whole("compiled"))


def _mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any] | None:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"has no {path.name}.")
        return None
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"has a damaged {path.name}, which is left out.")
        return None
    return found


def _schedule(made_with: dict[str, Any] | None, config: dict[str, Any] | None) -> Schedule | None:
    """As it was trained; of a run of before made_with.json was written, as its configuration says."""
    try:
        if made_with is not None:
            return Schedule(**made_with["schedule"])
        if config is not None:
            settings = {k: v for k, v in config["schedule"].items() if k not in ("preset", "keep")}
            return Schedule(**settings, total_steps=config["train"]["total_steps"])
    except (EstfxError, KeyError, TypeError, AttributeError):
        pass
    return None
