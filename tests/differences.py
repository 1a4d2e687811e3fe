"""How far two runs are apart. `pytest -rP` shows it, also of tests that pass: the figures of docs/how-to/clients.md."""

from __future__ import annotations

from collections.abc import Sequence


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of losses, step by step. It is printed."""
    largest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    print(f"largest difference of {len(ours)} losses: {largest:.1e}")
    return largest
