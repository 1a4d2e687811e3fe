"""Candidates of a search, and how others are made from them: by width, by units, by depth, and by two parents."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Candidate", "Rates", "Space"]

Units = Mapping[str, Mapping[str, tuple[int, ...]]]  # layer → role → kept, ascending


@dataclass(frozen=True)
class Candidate:
    """A part of the model. Layers that are skipped have units too, for when they come back."""

    skipped: frozenset[str]
    units: Units

    @property
    def key(self) -> str:
        """Equal for candidates that compute the same."""
        running = {name: roles for name, roles in self.units.items() if name not in self.skipped}
        return hashlib.blake2b(repr((sorted(self.skipped), running)).encode(), digest_size=12).hexdigest()

    def counts(self, name: str) -> dict[str, int]:
        """How many units of a layer are kept, by role."""
        return {role: len(kept) for role, kept in self.units.get(name, {}).items()}

    def to_json(self) -> dict[str, Any]:
        """As plain data, which `from_json` reads."""
        units = {name: {role: list(kept) for role, kept in roles.items()} for name, roles in self.units.items()}
        return {"skipped": sorted(self.skipped), "units": units}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Candidate:
        """What `to_json` gave."""
        units = {name: {role: tuple(kept) for role, kept in roles.items()} for name, roles in data["units"].items()}
        return Candidate(frozenset(data["skipped"]), units)


@dataclass(frozen=True)
class Rates:
    """The chance of each change when a candidate is mutated."""

    width: float  # that a role of a layer gets another number of units
    units: float  # that a role of a layer gets other units
    depth: float  # that a layer is skipped, or comes back


@dataclass(frozen=True)
class Space:
    """What can be chosen of a model: numbers of units by layer and role, which units, and which layers."""

    scores: Mapping[str, Mapping[str, Sequence[float]]]  # layer → role → a number for each unit, higher is better
    widths: Mapping[str, Mapping[str, tuple[int, ...]]]  # how many may be kept, ascending; the last is all
    layers: Mapping[str, float]  # of those that may be skipped, how much they matter

    def uniform(self, share: float, skipped: frozenset[str] = frozenset()) -> Candidate:
        """In every layer the best units, as many as come nearest to that share."""
        units = {
            name: {
                role: self._best(name, role, min(widths, key=lambda width: abs(width - share * widths[-1])))
                for role, widths in roles.items()
            }
            for name, roles in self.widths.items()
        }
        return Candidate(skipped, units)

    def smallest(self) -> Candidate:
        """The least of everything."""
        worst_first = sorted(self.layers, key=lambda name: self.layers[name])
        every_layer = not set(self.widths) - set(worst_first)
        return self.uniform(0.0, frozenset(worst_first[: len(worst_first) - every_layer]))

    def resized(self, candidate: Candidate, name: str, role: str, steps: int) -> Candidate | None:
        """Some steps wider or narrower: the worst units go, the best ones come back. None beyond the last width."""
        widths, kept = self.widths[name][role], candidate.units[name][role]
        place = widths.index(len(kept)) + steps
        if not 0 <= place < len(widths):
            return None
        scores = self.scores[name][role]
        if steps < 0:
            chosen = sorted(kept, key=lambda unit: -scores[unit])[: widths[place]]
        else:
            others = sorted(set(range(widths[-1])) - set(kept), key=lambda unit: -scores[unit])
            chosen = [*kept, *others[: widths[place] - len(kept)]]
        return _with(candidate, name, role, chosen)

    def mutated(self, candidate: Candidate, rates: Rates, draw: random.Random) -> Candidate:
        """Changed at random; its size may be another."""
        for name, roles in self.widths.items():
            for role in roles:
                if draw.random() < rates.width:
                    candidate = self.resized(candidate, name, role, draw.choice((-1, 1))) or candidate
                if draw.random() < rates.units:
                    candidate = self._exchanged(candidate, name, role, draw)
        if self.layers and draw.random() < rates.depth:
            candidate = self._deepened(candidate, draw)
        return candidate

    def crossed(self, one: Candidate, other: Candidate, draw: random.Random) -> Candidate:
        """Each layer as it is in one of the two."""
        of_one = {name: draw.random() < 0.5 for name in (*self.widths, *self.layers)}
        units = {name: (one if of_one[name] else other).units[name] for name in self.widths}
        skipped = frozenset(name for name in self.layers if name in (one if of_one[name] else other).skipped)
        return Candidate(skipped if self._leaves_a_layer(skipped) else one.skipped, units)

    def _exchanged(self, candidate: Candidate, name: str, role: str, draw: random.Random) -> Candidate:
        """Some kept units against others: rather bad ones against rather good ones."""
        kept = candidate.units[name][role]
        others = list(set(range(self.widths[name][role][-1])) - set(kept))
        number = min(len(others), len(kept), 1 + len(kept) // 10)
        if not number:
            return candidate
        number = draw.randint(1, number)
        scores = self.scores[name][role]
        ranked = sorted(kept, key=lambda unit: scores[unit])
        come = sorted(others, key=lambda unit: -scores[unit])
        gone = set(draw.sample(ranked[: max(number, (len(ranked) + 1) // 2)], number))
        come = draw.sample(come[: max(number, (len(come) + 1) // 2)], number)
        return _with(candidate, name, role, [*(set(kept) - gone), *come])

    def _deepened(self, candidate: Candidate, draw: random.Random) -> Candidate:
        """One layer less or more: two are drawn, and that which matters less is skipped, or the other comes back."""
        two = draw.sample(sorted(self.layers), min(2, len(self.layers)))
        less, more = min(two, key=self.layers.__getitem__), max(two, key=self.layers.__getitem__)
        changed = candidate.skipped - {more} if more in candidate.skipped else candidate.skipped ^ {less}
        return replace(candidate, skipped=changed) if self._leaves_a_layer(changed) else candidate

    def _leaves_a_layer(self, skipped: frozenset[str]) -> bool:
        return len(skipped) < len(set(self.widths) | set(self.layers))

    def _best(self, name: str, role: str, number: int) -> tuple[int, ...]:
        scores = self.scores[name][role]
        return tuple(sorted(sorted(range(len(scores)), key=lambda unit: -scores[unit])[:number]))


def _with(candidate: Candidate, name: str, role: str, kept: Sequence[int]) -> Candidate:
    roles = {**candidate.units[name], role: tuple(sorted(kept))}
    return replace(candidate, units={**candidate.units, name: roles})
