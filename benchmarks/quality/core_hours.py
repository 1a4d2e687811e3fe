"""What the experiments cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from behind import Results
from experiment import ORDER

__all__ = ["cost_table"]


def cost_table(every: Mapping[str, Results]) -> Iterator[str]:
    """What the experiments cost, by what their names begin with: runs, steps, and core-hours of the steps alone.

    A run that another experiment takes for its own counts once, where it was made.
    """
    yield "| experiments | runs | steps | core-hours |"
    yield "|---|---|---|---|"
    rows: dict[str, list[float]] = {}
    for name, results in every.items():
        own = (run for seeds in results.values() for run in seeds.values() if run["experiment"] == name)
        for run in own:
            row = rows.setdefault(name.split("-")[0], [0, 0, 0.0])
            known = [s for s in run["stages"] if s["seconds_per_step"] is not None]
            spent = sum(s["seconds_per_step"] * (s["stop"] - s["start"]) for s in known)
            row[0] += 1
            row[1] += run["steps"]
            row[2] += spent * run["environment"]["torch_threads"] / 3600
    for name in sorted(rows, key=ORDER.index):
        runs, steps, hours = rows[name]
        yield f"| {name} | {runs:.0f} | {steps:,.0f} | {hours:.1f} |"
    runs, steps, hours = map(sum, zip(*rows.values(), strict=True))
    yield f"| all | {runs:.0f} | {steps:,.0f} | {hours:.1f} |"
