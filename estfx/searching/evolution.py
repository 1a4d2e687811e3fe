"""Evolution: the best candidates are mutated and crossed, generation by generation, always within the target."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from estfx.errors import EstfxError
from estfx.searching.candidate_runs import CandidateRuns
from estfx.searching.candidates import Candidate, Rates, Space

__all__ = ["Evolution", "Settings"]

LARGE = Rates(width=0.6, units=0.3, depth=0.1)  # of the first generation, and of a fifth of each later one
SMALL = Rates(width=0.3, units=0.1, depth=0.1)
TRIES = 20  # to make a candidate that was not there before


@dataclass(frozen=True)
class Settings:
    """How many, and how large."""

    target: Mapping[str, float]  # at most these shares of the whole layers' parameters, flops or seconds
    population: int
    kept: int
    generations: int
    seed: int


@dataclass
class Evolution:
    """The state of a search between two generations."""

    space: Space
    runs: CandidateRuns
    settings: Settings
    generation: int = 0  # of which all candidates are judged
    best: list[tuple[float, Candidate]] = field(default_factory=list)  # with their losses, the best first
    history: list[tuple[int, float]] = field(default_factory=list)  # candidates so far and the lowest loss, each time
    first: float = float("nan")  # the loss of what the scores alone say is best
    judged: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.settings.seed)
        self._whole = {kind: self.runs.cost(None, kind) for kind in self.settings.target}
        self._seen: set[str] = set()  # that were judged

    def share(self, candidate: Candidate, kind: str) -> float:
        """Of a cost of the whole layers."""
        return self.runs.cost(candidate, kind) / self._whole[kind]

    def check(self) -> None:
        """Raises EstfxError if even the smallest candidate is too large."""
        smallest = self.space.smallest()
        for kind, limit in self.settings.target.items():
            least = self.share(smallest, kind)
            if least > limit:
                raise EstfxError(
                    f"target {kind}={limit:g} cannot be met: with the least of everything {least:.3f} of the layers' "
                    f"{kind} are left, {least - limit:.3f} too much. Ask for more, or for finer steps (`levels`)."
                )

    def run(self) -> Iterator[Evolution]:
        """Goes on to the last generation; gives itself after each."""
        while self.generation < self.settings.generations or not self.best:
            for candidate in self._next():
                self._judge(candidate)
            self.best = sorted(self.best, key=lambda pair: pair[0])[: self.settings.kept]
            self.generation += bool(self.history)
            self.history.append((self.judged, self.best[0][0]))
            yield self

    def _judge(self, candidate: Candidate) -> None:
        loss = self.runs.loss(candidate)
        self.judged += 1
        self._seen.add(candidate.key)
        if loss == loss:  # which NaN is not
            self.best.append((loss, candidate))
        if self.judged == 1:
            self.first = loss

    def _next(self) -> Iterator[Candidate]:
        number = self.settings.population
        if not self.history:
            first = self._from_scores()
            yield first
            yield from self._new(number - 1, lambda: self.space.mutated(first, LARGE, self.draw))
            return
        parents = [candidate for _, candidate in self.best]

        def one() -> Candidate:
            return self.draw.choice(parents)

        mutated, crossed = number // 2, number * 3 // 10
        yield from self._new(mutated, lambda: self.space.mutated(one(), SMALL, self.draw))
        yield from self._new(crossed, lambda: self.space.crossed(one(), one(), self.draw))
        yield from self._new(number - mutated - crossed, lambda: self.space.mutated(one(), LARGE, self.draw))

    def _new(self, number: int, made: Callable[[], Candidate]) -> Iterator[Candidate]:
        """As many as can be made that are within the target and were not there before."""
        for _ in range(number):
            for _ in range(TRIES):
                candidate = self._fitted(made())
                if candidate is not None and candidate.key not in self._seen:
                    yield candidate
                    break

    def _from_scores(self) -> Candidate:
        """The best units of every layer, the same share of all, as large as the target allows."""
        shares = [step / 100 for step in range(100, -1, -1)]
        first = next((each for each in map(self.space.uniform, shares) if self._fits(each)), None)
        return self._fitted(first if first is not None else self.space.smallest()) or self.space.smallest()

    def _fits(self, candidate: Candidate) -> bool:
        return all(self.share(candidate, kind) <= limit for kind, limit in self.settings.target.items())

    def _fitted(self, candidate: Candidate) -> Candidate | None:
        """Made narrower at random until it is within the target, and wider again as far as it goes."""
        places = [(name, role) for name, roles in self.space.widths.items() for role in roles]
        while not self._fits(candidate):
            running = [place for place in places if place[0] not in candidate.skipped]
            self.draw.shuffle(running)
            narrower = (self.space.resized(candidate, name, role, -1) for name, role in running)
            found = next((each for each in narrower if each is not None), None)
            if found is None:
                return None
            candidate = found
        self.draw.shuffle(places)
        for name, role in places:
            wider = self.space.resized(candidate, name, role, 1) if name not in candidate.skipped else None
            if wider is not None and self._fits(wider):
                candidate = wider
        return candidate

    # -- written down, to be gone on with ----------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Its state between two generations."""
        version, numbers, gauss = self.draw.getstate()
        return {
            "generation": self.generation,
            "best": [{"loss": loss, **candidate.to_json()} for loss, candidate in self.best],
            "history": [list(each) for each in self.history],
            "first": self.first,
            "judged": self.judged,
            "seen": sorted(self._seen),
            "draw": [version, list(numbers), gauss],
        }

    def take(self, data: Mapping[str, Any]) -> None:
        """Goes back to a state that was written."""
        self.generation, self.first, self.judged = data["generation"], data["first"], data["judged"]
        self.best = [(each["loss"], Candidate.from_json(each)) for each in data["best"]]
        self.history = [(number, loss) for number, loss in data["history"]]
        self._seen = set(data["seen"])
        version, numbers, gauss = data["draw"]
        self.draw.setstate((version, tuple(numbers), gauss))

    def result(self) -> Candidate:
        """The best one, without the units of layers that it skips."""
        _, candidate = self.best[0]
        return replace(
            candidate, units={name: roles for name, roles in candidate.units.items() if name not in candidate.skipped}
        )
