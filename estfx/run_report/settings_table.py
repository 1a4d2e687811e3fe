"""In which settings runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["differing", "in_words"]

NAMED = 4  # differences that a sentence names


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By dotted name, the values of those settings that are not the same everywhere."""
    flat = [_flat(each) for each in settings]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = {name: [each.get(name, "–") for each in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def in_words(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs between two, for a sentence; an empty string if nothing does."""
    rows = [f"{name}: {first} and {second}" for name, (first, second) in differing([one, other]).items()]
    return "; ".join(rows[:NAMED]) + (f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else "")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            rows[f"{prefix}{name}"] = "; ".join(_words(each) for each in value)
        else:
            rows[f"{prefix}{name}"] = str(value)
    return rows


def _words(settings: Mapping[str, Any]) -> str:
    """`{start: 0, heads: 0.5}` is `start 0, heads 0.5`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())
