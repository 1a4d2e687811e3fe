"""The report as one HTML page that needs nothing else, in the reader's choice of light or dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from estfx.run_report.contents import Contents, RunContents
from estfx.run_report.curves import AXES
from estfx.run_report.figures import TITLES, figures_of, word
from estfx.run_report.svg import inline
from estfx.run_report.trained_units import COLUMNS, RoleMap
from estfx.showing import LIGHT, style
from estfx.training import LEFT_OUT

__all__ = ["page"]

DARK: Mapping[str, str] = {
    "text": "#e4e8ed", "muted": "#9aa5b1", "grid": "#333b45", "ground": "#12161b", "shade": "#222b38",
    "run-1": "#6cb4ff", "run-2": "#ff9a5c", "run-3": "#4fd3a3",
    "run-4": "#c7a3ff", "run-5": "#ff8fc3", "run-6": "#d8cf5e",
}  # fmt: skip
_DASHES = ("", "8 3.5", "3.5 2", "9 3 2 3")  # as the figures' lines and markers, run by run
_MARKERS = (
    "M17 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M17.5 2.5h7v7h-7z",
    "M21 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "M21 2l4.5 8h-9z",
    "M21 10l4.5-8h-9z",
    "M19.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
)


def page(contents: Contents) -> str:
    """Renders the page."""
    runs = contents.runs
    with style():
        figures = {
            name: Markup(inline(figure, name, _title(name, runs))) for name, figure in figures_of(contents, False)
        }
    environment = Environment(loader=PackageLoader("estfx.run_report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        title=f"Training report: {', '.join(each.label for each in runs)}",
        contents=contents,
        runs=runs,
        figures=figures,
        loss_figures=[f"loss-{axis}" for axis in AXES],
        titles=TITLES,
        staged=next((each for each in runs if len(each.curves.stages) > 1), None),
        spans=sorted({each.curves.smoothed_over for each in runs}),
        compared=[each for each in runs if each.facts["against_dense"] is not None],
        environment=_environment(contents),
        left_out=LEFT_OUT,
        light=LIGHT,
        dark=DARK,
        dashes=_DASHES,
        markers=_MARKERS,
        count=lambda value: f"{value:,}",
        quantity=_quantity,
        percent=_percent,
        loss=lambda value: f"{value:.4f}",
        signed=lambda value: f"{value:+.4f}".replace("-", "−"),
        ratio=lambda value: f"{value:.2f}",
        seconds=lambda value: f"{value:.3g}" if value < 100 else f"{value:,.0f}",
        duration=_duration,
        of_dense=_of_dense,
        compilations=_compilations,
        compiled=any(each.facts["compiled"] is not False for each in contents.runs),
        column_of_steps=_column_of_steps,
        what=_what,
        word=word,
    )


def _title(name: str, runs: tuple[RunContents, ...]) -> str:
    if name.startswith("trained-"):
        _, number, role = name.split("-", 2)
        return f"Heat map: how often the {role} of {runs[int(number) - 1].label} were trained"
    return f"{TITLES[name]}: {', '.join(each.label for each in runs)}"


def _quantity(value: float) -> str:
    """With the prefixes of the international system: 1.23 T."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0").replace("-", "−") + " %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _of_dense(each: RunContents, stage: int) -> float | None:
    stages = (each.facts["against_dense"] or {}).get("seconds_per_step", [])
    return next((one["of_dense"] for one in stages if one["stage"] == stage), None)


def _compilations(each: RunContents) -> str:
    graphs = each.facts["graphs"]
    if graphs is None:
        return "not counted by the version that ran it."
    if not graphs["total"]:
        return "no graphs compiled; the run was not compiled." if each.facts["compiled"] is False else "no graphs."
    text = f"{graphs['total']} graphs, the last at step {graphs['steps'][-1]['step']}"
    others = [step for step in graphs["steps"] if not step["begins_a_stage"]]
    if not others:
        return f"{text}; all of them in first steps of a stage."
    which = ", ".join(str(step["step"]) for step in others[:8]) + (", …" if len(others) > 8 else "")
    return f"{text}; {sum(step['graphs'] for step in others)} of them not in the first step of a stage (steps {which})."


def _column_of_steps(each: RunContents) -> str:
    assert each.trained is not None
    columns = each.trained.running.shape[1]
    if columns == each.trained.of:
        return "a step"
    steps = each.trained.of / columns
    return f"{steps:.0f} steps" if steps == round(steps) else f"about {steps:.3g} steps"


def _what(role: RoleMap) -> str:
    units = role.role.replace("_", " ")
    sizes = f"{role.sizes[0]:,}" if len(set(role.sizes)) == 1 else f"{min(role.sizes):,} to {max(role.sizes):,}"
    groups = " (groups of them where several share keys and values)" if units == "heads" else ""
    each = f"Each row is a layer with {sizes} {units}{groups}"
    if len(set(role.sizes)) > 1:
        return f"{each}, stretched to one width; each column is a place in it."
    if role.sizes[0] > COLUMNS:
        return f"{each}; each column is the mean of {role.sizes[0] / COLUMNS:.3g} neighbours."
    return f"{each}, one a column."


def _environment(contents: Contents) -> list[tuple[str, list[str]]]:
    """Rows of a table, a column a run."""
    flat = [_flat(each.run.environment or {}) for each in contents.runs]
    names = dict.fromkeys(name for each in flat for name in each)
    return [(name, [each.get(name, "–") for each in flat]) for name in names]


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            rows |= {
                package: "not installed" if version is None else str(version) for package, version in value.items()
            }
        elif isinstance(value, list):
            counted = {each: value.count(each) for each in value}
            rows[name.replace("_", " ")] = ", ".join(f"{n} × {each}" for each, n in counted.items()) or "none"
        else:
            rows[name.replace("_", " ")] = str(value)
    return rows
