"""Many names of layers in few words: `layers.0, 2, 4 … 22`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["listed"]

_NUMBERED = re.compile(r"(?P<before>[^#]*?)(?P<number>\d+)(?P<after>[^\d#]*(?:#\d+)?)")  # the last number of a path


def listed(names: Iterable[str]) -> str:
    """Every name, those that differ in a number by its ranges.

    `0 … 5` and, among others, `0–5` is every number from 0 to 5, `0, 2, 4 … 22` every second one.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        before, number, after = found.group("before", "number", "after") if found else (name, "", "")
        groups.setdefault((before, after), []).append(number)
    return ", ".join(_group(before, after, numbers) for (before, after), numbers in groups.items())


def _group(before: str, after: str, numbers: list[str]) -> str:
    if len(numbers) == 1:
        return f"{before}{numbers[0]}{after}"
    runs = list(_runs(sorted(numbers, key=int)))
    if len(runs) == 1 and _step(runs[0]) == 1:
        return f"{before}{runs[0][0]}{after} … {before}{runs[0][-1]}{after}"
    if after:  # a number alone is no name's end
        return ", ".join(_run([f"{before}{number}{after}" for number in run], _step(run)) for run in runs)
    return before + ", ".join(_run(run, _step(run)) for run in runs)


def _runs(numbers: Sequence[str]) -> Iterator[list[str]]:
    """Cuts rising numbers where they cease to rise by the same."""
    at = 0
    while at < len(numbers):
        end = at + 1
        while end < len(numbers) and (end - at < 2 or _step(numbers[end - 1 : end + 1]) == _step(numbers[at:])):
            end += 1
        if end - at < (3 if _step(numbers[at:end]) == 1 else 5):  # too few to be called a range
            end = at + 1
        yield list(numbers[at:end])
        at = end


def _step(numbers: Sequence[str]) -> int:
    return int(numbers[1]) - int(numbers[0]) if len(numbers) > 1 else 0


def _run(shown: Sequence[str], step: int) -> str:
    if step == 0:
        return shown[0]
    return f"{shown[0]}–{shown[-1]}" if step == 1 else f"{', '.join(shown[:3])} … {shown[-1]}"
