"""How what EST loses falls with the length of a run, and what a saving by `compound` is worth: laws.

A law is fitted to the GPT-2s that were trained with bytes as tokens and a learning rate that is held. Each experiment
is one point, the mean of its seeds. EST's loss above dense's is scale · x ** -exponent, where x is the number of
steps or of tokens a parameter, by least squares in logarithms. What a saving is worth is a line in the logarithm of
the tokens a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from behind import Results
from compared import difference, rate_of, saved_at_equal_loss, stored
from experiment import RESULTS
from scipy import optimize, stats

__all__ = ["FITTED", "Law", "Point", "fitted", "once", "picture", "point_of", "points", "refit_table"]

NO_FLOOR = 1e-6  # nats: the fit ends at zero, where an error means nothing
FITTED = ("est",)  # schedules whose loss falls by a law


@dataclass(frozen=True)
class Point:
    """One experiment with one schedule."""

    experiment: str
    steps: int
    tokens: float  # a parameter
    batch: int  # sequences
    value: float  # EST's loss above dense's; or the FLOPs saved at equal loss, over those saved
    seeds: int


@dataclass(frozen=True)
class Law:
    """A line through transformed points: y = intercept + slope · log2(x)."""

    of: str  # the field of a point that is x
    intercept: float
    slope: float
    slope_error: float  # standard error
    spread: float  # standard deviation of the residuals
    xs: tuple[float, ...]  # log2 of those that it was fitted to
    logarithmic: bool  # whether y is the logarithm of the value

    def at(self, x: float, level: float = 0.95) -> tuple[float, float, float]:
        """The value at x, and the interval in which a new measurement lies."""
        place, number = math.log2(x), len(self.xs)
        middle = self.intercept + self.slope * place
        around = float(np.var(self.xs)) * number
        error = self.spread * math.sqrt(1 + 1 / number + (place - float(np.mean(self.xs))) ** 2 / around)
        half = float(stats.t.ppf((1 + level) / 2, number - 2)) * error
        back: Callable[[float], float] = math.exp if self.logarithmic else float
        return back(middle), back(middle - half), back(middle + half)

    def extrapolates(self, x: float) -> bool:
        """Whether x is outside of what the law was fitted to."""
        return not min(self.xs) <= math.log2(x) <= max(self.xs)


def fitted(points: Sequence[Point], of: str, *, logarithmic: bool) -> Law:
    """Least squares; at least three points. Values that are not above zero have no logarithm and are left out."""
    used = [point for point in points if point.value > 0 or not logarithmic]
    if len(used) < 3:
        raise ValueError(f"a law needs three points at least; there are {len(used)}.")
    xs = [math.log2(getattr(point, of)) for point in used]
    ys = [math.log(point.value) if logarithmic else point.value for point in used]
    line = stats.linregress(xs, ys)
    residuals = np.array(ys) - (line.intercept + line.slope * np.array(xs))
    spread = math.sqrt(float((residuals**2).sum()) / (len(used) - 2))
    return Law(of, float(line.intercept), float(line.slope), float(line.stderr), spread, tuple(xs), logarithmic)


# -- points ----------------------------------------------------------------------------------------------------------


def points(arm: str) -> list[Point]:
    """What was measured of a schedule, at dense's own rate and shape: of a kind of run that with most seeds."""
    folders = sorted(each.name for each in RESULTS.iterdir() if each.is_dir())
    made = (point_of(name, stored(name), arm) for name in folders)
    return once([point for point in made if point is not None])


def once(points: Sequence[Point]) -> list[Point]:
    """Of each kind of run one point, that with most seeds."""
    kept: dict[tuple[int, float, int], Point] = {}
    for point in points:
        key = (point.steps, point.tokens, point.batch)
        kept[key] = max(kept.get(key, point), point, key=lambda each: each.seeds)
    return list(kept.values())


def point_of(name: str, results: Results, arm: str) -> Point | None:
    dense, runs = results.get("dense", {}), results.get(arm, {})
    above = difference(runs, dense)
    if above is None:
        return None
    one = next(iter(dense.values()))
    config = one["config"]
    usual = (
        config["train"].get("learning_rate_shape") == "warmup_stable_decay" and config["data"]["tokenizer"] == "bytes"
    )
    if not usual or config["model"]["name"] != "gpt2" or rate_of(one) != rate_of(next(iter(runs.values()))):
        return None
    value = above.mean
    if arm == "compound":
        worth = saved_at_equal_loss(runs, results)
        if worth is None:
            return None
        value = worth[0]
    tokens = one["tokens"] / one["parameters"]
    return Point(name, one["steps"], tokens, config["train"]["batch_size"], value, above.seeds)


# -- fitted again -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A form of a law: a power of each of some fields of a point, and perhaps a floor."""

    of: tuple[str, ...]
    floor: bool = False

    def fit(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of the scale, the exponents, and the floor if there is one; and their standard errors."""
        logs_NF, values_N = self._logs(points), np.log([point.value for point in points])
        terms_NT = np.column_stack([np.ones(len(points)), logs_NF])
        begin, *_ = np.linalg.lstsq(terms_NT, values_N, rcond=None)
        if not self.floor:
            residuals = values_N - terms_NT @ begin
            spread = float(residuals @ residuals) / max(len(points) - len(begin), 1)
            return begin, np.sqrt(spread * np.diag(np.linalg.pinv(terms_NT.T @ terms_NT)))
        least = min(point.value for point in points)
        found, covariance = optimize.curve_fit(
            lambda _, *own: self._of_terms(terms_NT, np.array(own)),
            None,
            values_N,
            p0=[*begin, least / 10],
            bounds=([-np.inf] * len(begin) + [0.0], [np.inf] * len(begin) + [least]),
        )
        return found, np.sqrt(np.diag(covariance))

    def at(self, fit: np.ndarray, points: Sequence[Point]) -> np.ndarray:
        """The logarithms of the values that a fit gives."""
        return self._of_terms(np.column_stack([np.ones(len(points)), self._logs(points)]), fit)

    def left_out(self, points: Sequence[Point]) -> float:
        """By what factor a point is missed by the fit to the others, as a root mean square of logarithms."""
        errors = []
        for number, point in enumerate(points):
            fit, _ = self.fit([*points[:number], *points[number + 1 :]])
            errors.append(float(self.at(fit, [point])[0]) - math.log(point.value))
        return math.exp(math.sqrt(float(np.mean(np.square(errors)))))

    def _logs(self, points: Sequence[Point]) -> np.ndarray:
        return np.log([[getattr(point, name) for name in self.of] for point in points])

    def _of_terms(self, terms_NT: np.ndarray, fit: np.ndarray) -> np.ndarray:
        powers_N: np.ndarray = terms_NT @ fit[: terms_NT.shape[1]]
        return np.logaddexp(powers_N, np.log(max(float(fit[-1]), 1e-12))) if self.floor else powers_N


FORMS = {
    "steps": Form(("steps",)),
    "steps, with a floor": Form(("steps",), floor=True),
    "tokens a parameter": Form(("tokens",)),
    "tokens a parameter, with a floor": Form(("tokens",), floor=True),
    "steps and sequences a step": Form(("steps", "batch")),
    "steps and tokens a parameter": Form(("steps", "tokens")),
}


def refit_table(arm: str) -> Iterator[str]:
    """Each form of a law, fitted to all that was measured: its exponents, its floor, and how well it foretells."""
    known = [point for point in points(arm) if point.value > 0]
    yield "| law in | exponents, 95 % | floor | misses a run that it was not fitted to by | runs |"
    yield "|---|---|---|---|---|"
    for name, form in FORMS.items():
        fit, errors = form.fit(known)
        wide = float(stats.t.ppf(0.975, len(known) - len(fit))) * errors
        powers = [f"{what} {-fit[place]:+.2f} ± {wide[place]:.2f}" for place, what in enumerate(form.of, start=1)]
        floor = "" if not form.floor else "none" if fit[-1] < NO_FLOOR else f"{fit[-1]:.3f} ± {wide[-1]:.3f}"
        yield f"| {name} | {', '.join(powers)} | {floor} | a factor of {form.left_out(known):.2f} | {len(known)} |"


def picture(arm: str, path: Path, until: int = 150_000) -> None:
    """What a schedule loses against the steps, and the law in steps: dashed, and named so, where there are no runs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file from the same results
    from matplotlib import pyplot

    known = [point for point in points(arm) if point.value > 0]
    law = fitted(known, "steps", logarithmic=True)
    first, last = (round(2**end) for end in (min(law.xs), max(law.xs)))
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for batch in sorted({point.batch for point in known}):
        own = [point for point in known if point.batch == batch]
        axes.scatter([p.steps for p in own], [p.value for p in own], label=f"measured, {batch} sequences a step")
        for point in own:
            above = "bottom" if point.tokens < 100 else "top"  # two may lie in one place
            axes.annotate(f" {point.tokens:.0f}", (point.steps, point.value), fontsize=8, va=above)
    for begin, end, dashes, label in (
        (first, last, "-", "law in steps"),
        (last, until, "--", "the same, extrapolated"),
    ):
        steps = np.geomspace(begin, end)
        values = np.array([law.at(step) for step in steps])
        axes.plot(steps, values[:, 0], dashes, color="black", label=label)
        axes.fill_between(steps, values[:, 1], values[:, 2], color="black", alpha=0.1 if dashes == "-" else 0.05)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps (numbers at the points: tokens a parameter)")
    axes.set_ylabel("loss above dense, nats a byte")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
