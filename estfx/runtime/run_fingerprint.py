"""What decides the draws of a run, for a checkpoint to hold: a run must go on with what it began with."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile, zip_longest
from typing import Any

from estfx.programs import Kind
from estfx.schedules import DrawnLayer, Schedule

__all__ = ["differences", "drawn_layers", "drawn_of", "run_fingerprint"]

LONG = 80  # characters of a value, as far as a message shows it


def run_fingerprint(model: str, schedule: Schedule, seed: int, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The class of a model, its schedule, seed and layers with the sizes of what is drawn, as plain data."""
    return {"model": model, "schedule": schedule.model_dump(mode="json"), "seed": seed, "layers": drawn_of(kinds)}


def drawn_of(kinds: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """What is drawn of each layer: whether it runs, and how many units of each role there are."""
    return {
        name: {"droppable": kind.first.residuals.droppable}
        | {role.name: role.axis.size for role in kind.first.roles.found}
        for name, kind in kinds.items()
    }


def drawn_layers(
    layers: Mapping[str, Mapping[str, Any]], paths: Mapping[str, str] | None = None
) -> dict[str, DrawnLayer]:
    """What `drawn_of` gave, for `draw_step`. `paths` says whose call each layer is; without it the names say so."""
    paths = paths if paths is not None else {name: _path(name, layers) for name in layers}
    return {
        name: DrawnLayer(paths[name], layer["droppable"], {k: v for k, v in layer.items() if k != "droppable"})
        for name, layer in layers.items()
    }


def _path(name: str, layers: Mapping[str, Any]) -> str:
    """`layers.0#2`, the second call of a module, is `layers.0`."""
    path, _, number = name.rpartition("#")
    return path if path in layers and number.isdigit() else name


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two of them, in words, the first five; members of lists are compared by their number."""
    lines = _differences(before, now, path)
    return lines if len(lines) <= 5 else [*lines[:5], f"and {len(lines) - 5} more"]


def _differences(before: object, now: object, path: str) -> list[str]:
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(before, list) and isinstance(now, list):
        counts = [f"{path}: there were {len(before)}, now there are {len(now)}"] * (len(before) != len(now))
        each = f"{path.removesuffix('s')} {{}}"  # `schedule.stages` has a `schedule.stage 2`
        pairs = enumerate(zip_longest(before, now), start=1)
        return counts + [line for number, (a, b) in pairs for line in _differences(a, b, each.format(number))]
    if before is None:
        return [f"{path} is new: {_short(now)}"]
    if now is None:
        return [f"{path} is gone: {_short(before)}"]
    a, b = _around_the_difference(_text(before), _text(now))
    return [f"{path} was {_short(a)}, is {_short(b)}"]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)


def _short(value: object) -> str:
    text = _text(value)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _around_the_difference(before: str, now: str) -> tuple[str, str]:
    """Without most of what two long texts begin with alike."""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False)))
    if max(len(before), len(now)) <= LONG or alike <= LONG // 2:
        return before, now
    return f"...{before[alike - LONG // 4 :]}", f"...{now[alike - LONG // 4 :]}"
