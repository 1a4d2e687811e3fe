"""The workbench of the analysis: dimensions under construction, refined until they are made of the same axes.

A dimension is a reference. Unifying two of them merges axes that are as long as each other, splits a longer one into a
product, and cuts one into a sum; what comes out, `resolve` gives as the plain data of `estfx.graphs.dimensions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import sympy
import torch

from estfx.graphs import Axis, Dim, Extent, Product, Sum, extent_of

__all__ = ["Algebra", "Ref"]

Ref = int  # a dimension on the workbench


def _ratio(whole: Extent, part: Extent) -> Extent:
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part
    ratio = sympy.simplify(whole / part)
    return int(ratio) if ratio.is_Integer else ratio


@dataclass
class _Node:
    kind: Literal["atom", "product", "sum"]
    size: int
    extent: Extent
    parts: tuple[Ref, ...] = ()


class Algebra:
    """Dimensions under construction. Every method keeps the sizes of what it is given."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._forward: list[Ref] = []  # union-find
        self._pins: list[tuple[Ref, str]] = []

    # -- making -----------------------------------------------------------------------------------

    def _new(self, kind: Literal["atom", "product", "sum"], size: int, extent: Extent, parts: tuple[Ref, ...]) -> Ref:
        self._nodes.append(_Node(kind, size, extent, parts))
        self._forward.append(len(self._forward))
        return len(self._nodes) - 1

    def fresh(self, size: int | torch.SymInt | Extent) -> Ref:
        value, extent = (size, size) if isinstance(size, int) else (None, size)
        if isinstance(size, torch.SymInt):
            value, extent = extent_of(size)
        assert value is not None, "a symbolic extent comes with its value"
        return self._new("atom", value, extent, ())

    def product(self, refs: Iterable[Ref]) -> Ref:
        factors = [f for ref in refs for f in self.factors(ref)]
        if not factors:
            return self.fresh(1)
        if len(factors) == 1:
            return factors[0]
        if not all(map(self.size, factors)):
            return self.fresh(0)  # which has no units
        extent = prod((self._nodes[f].extent for f in factors), start=1)
        return self._new("product", prod(map(self.size, factors)), extent, tuple(factors))

    def sum(self, refs: Iterable[Ref]) -> Ref:
        terms = [t for ref in refs for t in self.terms(ref)]
        if not terms:
            return self.fresh(0)
        if len(terms) == 1:
            return terms[0]
        extent = sum((self._nodes[t].extent for t in terms), start=0)
        return self._new("sum", sum(map(self.size, terms)), extent, tuple(terms))

    # -- reading ----------------------------------------------------------------------------------

    def find(self, ref: Ref) -> Ref:
        while self._forward[ref] != ref:
            self._forward[ref] = self._forward[self._forward[ref]]
            ref = self._forward[ref]
        return ref

    def size(self, ref: Ref) -> int:
        return self._nodes[ref].size

    def factors(self, ref: Ref) -> list[Ref]:
        """The factors, major to minor, none of them a product; none at all for a dimension of size 1."""
        ref = self.find(ref)
        node = self._nodes[ref]
        if node.kind == "product":
            return [f for part in node.parts for f in self.factors(part)]
        return [] if node.size == 1 and node.kind == "atom" else [ref]

    def terms(self, ref: Ref) -> list[Ref]:
        """The terms in order, none of them a sum; none at all for a dimension of size 0."""
        ref = self.find(ref)
        node = self._nodes[ref]
        if node.kind == "sum":
            return [t for part in node.parts for t in self.terms(part)]
        return [] if node.size == 0 else [ref]

    def resolve(self, ref: Ref) -> Dim:
        ref = self.find(ref)
        node = self._nodes[ref]
        if node.kind == "sum":
            return Sum(tuple(self.resolve(t) for t in self.terms(ref)))
        factors = self.factors(ref)
        if len(factors) > 1:
            return Product(tuple(self.resolve(f) for f in factors))
        if factors and factors[0] != ref:
            return self.resolve(factors[0])
        return Axis(ref, node.size, not isinstance(node.extent, int))

    # -- refining ---------------------------------------------------------------------------------

    def unify(self, a: Ref, b: Ref) -> bool:
        """Makes two dimensions one. False if they cannot be: then the caller must pin both."""
        a, b = self.find(a), self.find(b)
        if self.size(a) != self.size(b):
            return False
        if a == b or self.size(a) == 0:
            return True
        for one, other in ((a, b), (b, a)):
            if self._nodes[one].kind == "atom":
                self._join(one, other)
                return True
        if self._nodes[a].kind == self._nodes[b].kind == "sum":
            ok = self._align_terms(self.terms(a), self.terms(b))
        else:
            ok = self._align_factors(self.factors(a), self.factors(b))
        if ok and self.find(a) != self.find(b):
            self._forward[self.find(a)] = self.find(b)
        return ok

    def _join(self, atom: Ref, other: Ref) -> None:
        mine, theirs = self._nodes[atom], self._nodes[other]
        if isinstance(mine.extent, int) and theirs.kind == "atom":
            theirs.extent = mine.extent  # what is static on one side is static
        self._forward[atom] = other

    def _align_factors(self, left: list[Ref], right: list[Ref]) -> bool:
        while left and right:
            x, y = left.pop(), right.pop()
            if self.size(x) == self.size(y):
                if not self.unify(x, y):
                    return False
            else:
                big, small, rest = (x, y, left) if self.size(x) > self.size(y) else (y, x, right)
                parts = self.split_minor(big, self.size(small), self._nodes[small].extent)
                if parts is None or not self.unify(parts[1], small):
                    return False
                rest.append(parts[0])
            # unifying may have refined what is still to come
            left, right = ([f for ref in refs for f in self.factors(ref)] for refs in (left, right))
        return not left and not right

    def _align_terms(self, left: list[Ref], right: list[Ref]) -> bool:
        left, right = left[::-1], right[::-1]
        while left and right:
            x, y = left.pop(), right.pop()
            if self.size(x) == self.size(y):
                if not self.unify(x, y):
                    return False
            else:
                big, small, rest = (x, y, left) if self.size(x) > self.size(y) else (y, x, right)
                parts = self.cut(big, [self.size(small), self.size(big) - self.size(small)])
                if parts is None or not self.unify(parts[0], small):
                    return False
                rest.append(parts[1])
        return not left and not right

    def split_minor(self, ref: Ref, minor: int, extent: Extent | None = None) -> tuple[Ref, Ref] | None:
        """`ref` as (major, minor) with the minor part of that size, or None if it does not fit."""
        ref = self.find(ref)
        if minor == 1:
            return ref, self.fresh(1)
        if minor == self.size(ref):
            return self.fresh(1), ref
        if self.size(ref) == 0:
            return ref, self.fresh(minor)
        factors = self.factors(ref)
        if len(factors) != 1:
            tail: list[Ref] = []
            while factors and minor % self.size(factors[-1]) == 0:
                tail.insert(0, factors.pop())
                minor //= self.size(tail[0])
                extent = None if extent is None else _ratio(extent, self._nodes[tail[0]].extent)
                if minor == 1:
                    return self.product(factors), self.product(tail)
            if not factors or (parts := self.split_minor(factors.pop(), minor, extent)) is None:
                return None
            return self.product([*factors, parts[0]]), self.product([parts[1], *tail])
        node = self._nodes[ref]
        if node.size % minor:
            return None
        if node.kind == "atom":
            extent = minor if extent is None else extent
            major_extent = node.size // minor if isinstance(node.extent, int) else _ratio(node.extent, extent)
            major = self._new("atom", node.size // minor, major_extent, ())
            rest = self._new("atom", minor, extent, ())
            node.kind, node.parts = "product", (major, rest)
            return major, rest
        majors, minors = [], []
        for term in self.terms(ref):
            parts = (self.fresh(1), term) if self.size(term) == minor else self.split_minor(term, minor, extent)
            if parts is None:
                return None
            majors.append(parts[0])
            minors.append(parts[1])
        if not all(self.unify(minors[0], other) for other in minors[1:]):
            return None
        major = self.sum(majors)
        node.kind, node.parts = "product", (major, minors[0])
        return major, minors[0]

    def cut(self, ref: Ref, sizes: Sequence[int]) -> list[Ref] | None:
        """`ref` as a sum of parts of those sizes, or None if a cut would run through a unit of its major axis."""
        parts = []
        for size in sizes[:-1]:
            pair = self._cut_at(ref, size)
            if pair is None:
                return None
            parts.append(pair[0])
            ref = pair[1]
        return [*parts, ref]

    def _cut_at(self, ref: Ref, position: int) -> tuple[Ref, Ref] | None:
        ref = self.find(ref)
        node = self._nodes[ref]
        if position == 0:
            return self.fresh(0), ref
        if position == node.size:
            return ref, self.fresh(0)
        factors = self.factors(ref)
        if len(factors) > 1:
            minor = prod(map(self.size, factors[1:]))
            if position % minor or (pair := self._cut_at(factors[0], position // minor)) is None:
                return None
            return self.product([pair[0], *factors[1:]]), self.product([pair[1], *factors[1:]])
        if node.kind == "atom":
            rest = node.size - position if isinstance(node.extent, int) else node.extent - position
            left, right = self.fresh(position), self._new("atom", node.size - position, rest, ())
            node.kind, node.parts = "sum", (left, right)
            return left, right
        before: list[Ref] = []
        terms = self.terms(ref)
        while position >= self.size(terms[0]):
            before.append(terms.pop(0))
            position -= self.size(before[-1])
        if position == 0:
            return self.sum(before), self.sum(terms)
        pair = self._cut_at(terms[0], position)
        if pair is None:
            return None
        return self.sum([*before, pair[0]]), self.sum([pair[1], *terms[1:]])

    # -- pinning ----------------------------------------------------------------------------------

    def pin(self, ref: Ref, reason: str) -> None:
        """No axis in `ref`, now or after later refinement, may be made smaller."""
        self._pins.append((ref, reason))

    def pins(self) -> dict[Axis, tuple[str, ...]]:
        """The reasons, by axis."""
        reasons: dict[Axis, dict[str, None]] = {}
        for ref, reason in self._pins:
            for axis in self.resolve(ref).axes():
                reasons.setdefault(axis, {})[reason] = None
        return {axis: tuple(found) for axis, found in reasons.items()}
