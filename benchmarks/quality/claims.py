"""What the stored runs allow to be said of a schedule, in three words. Decided before the runs were made.

*No worse than dense* is a claim of non-inferiority. A schedule's loss above dense's may not be more than a margin: 0.01
nats a byte, and a fifth of what dense loses when it spends as few FLOPs (dense-short).

- Why 0.01: it is what two runs of dense differ by that have other seeds (a standard deviation of 0.005 to 0.01 at these
  sizes), and under 1 % of the loss. Nobody could tell such models apart.
- Why a fifth: what is saved is worth what dense-short loses. A schedule that keeps four fifths of it is worth it.

Both must hold. Each is tested at 5 %, one-sided. So a schedule that is worse by the whole margin is called good in 5 %
of trials at most, however noisy its runs are. That is so of one claim that is looked at once: of many claims, more are
false. A claim *holds* if both tests say so. It *does not* if the opposite is as sure (each at 2.5 %). It is *not
decided* otherwise, or with fewer than five seeds.

Differences are paired: same seed, same initial weights, same data in the same order, same held-out blocks. Two things
are random: the seeds, and the text that happened to be held out. Works are drawn, not blocks, and within each kind of
text. The variances of the two are added, with degrees of freedom by Satterthwaite, and Student's t is used.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

__all__ = [
    "FEWEST_SEEDS",
    "LEVEL",
    "MARGIN",
    "SHARE",
    "Claim",
    "Difference",
    "Unlike",
    "better",
    "check_alike",
    "difference",
    "holds",
    "in_seeds",
]

MARGIN = 0.01  # nats a byte
SHARE = 0.2  # of dense-short's loss
LEVEL = 0.05  # how often a false claim may be made
FEWEST_SEEDS = 5  # for a claim
FEWEST_OF_INTERVAL = 3  # of two seeds that happen to agree an interval would be far too narrow

Word = Literal["holds", "does not", "not decided"]
Runs = Mapping[int, Mapping[str, Any]]  # by seed


class Unlike(ValueError):
    """Two runs that were not trained alike are set against each other."""


@dataclass(frozen=True)
class Difference:
    """A mean over seeds and held-out text, and how sure it is."""

    mean: float
    error: float  # its standard error
    freedom: float  # degrees of it
    by_seed: tuple[float, ...]
    by_kind: Mapping[str, float]  # of text; empty if it is not known which block is of which work

    def __str__(self) -> str:
        seeds = in_seeds(self.seeds)
        return f"{self.figures}, {seeds}" if self.seeds >= FEWEST_OF_INTERVAL else f"{self.figures} ({seeds})"

    @property
    def figures(self) -> str:
        """The mean, and its interval if there is one."""
        low, high = self.interval()
        return f"{self.mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else "")

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided. Infinite for one seed or two: too little is known of others."""
        half = self._quantile((1 + level) / 2) * self.error if self.seeds >= FEWEST_OF_INTERVAL else math.inf
        return self.mean - half, self.mean + half

    def at_most(self, level: float = LEVEL) -> float:
        """It is lower than this in all but a share `level` of trials."""
        return self.interval(1 - 2 * level)[1]

    def at_least(self, level: float = LEVEL) -> float:
        return self.interval(1 - 2 * level)[0]

    def power(self, margin: float, level: float = LEVEL) -> float:
        """How often a true 0 would be shown to be below `margin` by as many seeds as noisy as these."""
        if self.seeds < 2 or self.error == 0:
            return float(self.seeds >= 2)
        return float(stats.nct.cdf(-self._quantile(1 - level), self.freedom, -margin / self.error))

    def _quantile(self, level: float) -> float:
        return float(stats.t.ppf(level, self.freedom))


@dataclass(frozen=True)
class Claim:
    """What was asked, and the answer."""

    word: Word
    difference: Difference
    margin: float  # the smaller of the two, for this model
    power: float  # at most so often *holds* is said of a schedule that loses nothing: the smaller of both tests'
    why: str = ""  # it is not decided, if there are too few seeds

    def __str__(self) -> str:
        return f"{self.spelled_out} ({self.why or f'power {self.power:.0%}'})"

    @property
    def spelled_out(self) -> str:
        """The word as the end of a sentence whose subject is the claim."""
        return "does not hold" if self.word == "does not" else self.word


def in_seeds(number: int) -> str:
    """How many, for reading."""
    return f"{number} seed{'s' * (number > 1)}"


# -- differences ---------------------------------------------------------------------------------------------------


def difference(
    losses_SB: np.ndarray, works_B: Sequence[int] | None = None, kinds_B: Sequence[str] | None = None
) -> Difference:
    """The mean of `[seeds, blocks]`, with the errors of seeds and of works. Without works, that of the seeds alone."""
    by_seed = losses_SB.mean(axis=1)
    seeds = len(by_seed)
    of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    of_text, freedom_of_text, by_kind = 0.0, math.inf, {}
    if works_B is not None and kinds_B is not None:
        of_text, freedom_of_text = _text_variance(losses_SB.mean(axis=0), np.array(works_B), np.array(kinds_B))
        by_kind = {kind: float(losses_SB[:, np.array(kinds_B) == kind].mean()) for kind in dict.fromkeys(kinds_B)}
    variance = of_seeds + of_text
    spread = of_seeds**2 / max(seeds - 1, 1) + (of_text**2 / freedom_of_text if of_text else 0.0)
    return Difference(
        mean=float(by_seed.mean()),
        error=math.sqrt(variance),
        freedom=variance**2 / spread if spread else math.inf,
        by_seed=tuple(map(float, by_seed)),
        by_kind=by_kind,
    )


def _text_variance(losses_B: np.ndarray, works_B: np.ndarray, kinds_B: np.ndarray) -> tuple[float, float]:
    """The variance of the mean if other works of the same kinds had been held out, and its degrees of freedom.

    Each kind has its share of the blocks; in it the mean is a ratio of sums over works, whose variance is linearised.
    """
    variances, freedoms = [], []
    for kind in np.unique(kinds_B):
        here = kinds_B == kind
        sums, counts = [], []
        for work in np.unique(works_B[here]):
            of_work = losses_B[here & (works_B == work)]
            sums.append(of_work.sum())
            counts.append(len(of_work))
        number = len(counts)
        if number < 2:
            continue  # nothing can be said of others
        residuals = np.array(sums) - losses_B[here].mean() * np.array(counts)
        of_mean = number / (number - 1) * float((residuals**2).sum()) / sum(counts) ** 2
        variances.append((here.mean()) ** 2 * of_mean)
        freedoms.append(number - 1)
    total = sum(variances)
    spread = sum(each**2 / freedom for each, freedom in zip(variances, freedoms, strict=True))
    return total, total**2 / spread if spread else math.inf


# -- claims --------------------------------------------------------------------------------------------------------


def holds(above: Difference, above_share: Difference, short: Difference) -> Claim:
    """Is an arm no worse than dense?

    Args:
        above: the arm's loss above dense's.
        above_share: that, less `SHARE` of dense-short's loss above dense's, seed by seed.
        short: dense-short's loss above dense's.
    """
    margin = min(MARGIN, SHARE * max(short.mean, 0.0))
    power = min(above.power(MARGIN), above_share.power(SHARE * max(short.mean, 0.0)))
    if few := _too_few(above):
        return Claim("not decided", above, margin, power, few)
    if above.at_most() < MARGIN and above_share.at_most() < 0:
        return Claim("holds", above, margin, power)
    if above.at_least(LEVEL / 2) > MARGIN or above_share.at_least(LEVEL / 2) > 0:
        return Claim("does not", above, margin, power)
    return Claim("not decided", above, margin, power)


def better(above_short: Difference, margin: float) -> Claim:
    """Is an arm better than dense for as many FLOPs? The power is to see a true gain of `margin`."""
    power = above_short.power(margin)
    if few := _too_few(above_short):
        return Claim("not decided", above_short, 0.0, power, few)
    if above_short.at_most() < 0:
        return Claim("holds", above_short, 0.0, power)
    return Claim("does not" if above_short.at_least() > 0 else "not decided", above_short, 0.0, power)


def _too_few(found: Difference) -> str:
    return f"{found.seeds} of {FEWEST_SEEDS} seeds" if found.seeds < FEWEST_SEEDS else ""


# -- runs that may be compared -------------------------------------------------------------------------------------

SAME = (  # where partners must agree
    ("text", "text"),
    ("model and its initialisation", "config.model"),
    ("tokens", "config.data.tokenizer"),
    ("length", "config.data.seq_len"),
    ("batch size", "config.train.batch_size"),
    ("accumulation", "config.train.accumulation"),
    ("warm-up", "config.train.warmup_steps"),
    ("precision", "config.train.precision"),
    ("optimizer", "config.train.optimizer"),
    ("learning rate", "config.train.learning_rate"),
    ("shape of the learning rate", "config.train.learning_rate_shape"),
    ("what the learning rate falls with", "config.train.learning_rate_falls_with"),
    ("share of decay", "config.train.decay_share"),
    ("weight decay", "config.train.weight_decay"),
)


def check_alike(one: Mapping[str, Any], other: Mapping[str, Any], declared: Collection[str] = ()) -> None:
    """Raises Unlike if two runs with one seed differ in what an arm does not say that it changes (`declared`)."""
    for what, place in SAME:
        if place.rsplit(".", 1)[-1] in declared:
            continue
        first, second = _at(one, place), _at(other, place)
        if first != second:
            raise Unlike(
                f"{one['experiment']}: {one['arm']} and {other['arm']} (seed {one['seed']}) differ in {what}: {first} "
                f"and {second}. They cannot be compared: run one of them again, or say so in the arm."
            )


def _at(result: Mapping[str, Any], place: str) -> Any:
    found: Any = result
    for part in place.split("."):
        found = found[part] if isinstance(found, Mapping) and part in found else None
    return found
