"""A quarter of the model types that has every operator with a rule that any of them has."""

from __future__ import annotations

from architecture_row import Row

__all__ = ["representative"]


def representative(rows: list[Row]) -> list[str]:
    """Types that add most operators first, quick ones before slow ones; then others, evenly, up to a quarter of all."""
    candidates = [row for row in rows if "failed" not in row]
    left = {operator for row in candidates for operator in row["operators"]}
    chosen: list[str] = []
    while left:
        best = max(candidates, key=lambda row: (len(left.intersection(row["operators"])), -row["seconds"]))
        chosen.append(best["type"])
        left.difference_update(best["operators"])
    others = [row["type"] for row in candidates if row["type"] not in chosen]
    missing = max(0, -(-len(rows) // 4) - len(chosen))
    step = max(1, len(others) // max(1, missing))
    return sorted([*chosen, *others[::step][:missing]])
