"""A dimension is an axis, a product of dimensions (major to minor) or a sum of them (in order): frozen plain data.

What is kept of it follows from what is kept of its axes: how long it is then, and which positions they are.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import sympy
import torch
from sympy import prime

__all__ = ["Axis", "Dim", "Extent", "Kept", "Product", "Sum", "coarse", "extent_of"]

Extent: TypeAlias = int | sympy.Expr  # of a dimension, as far as it is known when a graph is made
Kept = Mapping["Axis", int]  # how many units of an axis are kept; an axis that is not named is whole


@dataclass(frozen=True)
class Axis:
    """A dimension that is not made of others. `size` of a dynamic axis is that of the example inputs."""

    id: int
    size: int
    dynamic: bool = False

    def axes(self) -> Iterator[Axis]:
        yield self

    def narrowed_size(self, kept: Kept) -> int:
        return kept.get(self, self.size)

    def offset(self, position: int, kept: Kept) -> int:
        """Where `position` lies once the axes in `kept` are narrower; the end stays the end."""
        if self not in kept:
            return position
        if position not in (0, self.size):
            raise ValueError(f"position {position} lies inside the narrowed axis {self}")
        return 0 if position == 0 else kept[self]

    def flat_index(self, units: Mapping[Axis, np.ndarray]) -> np.ndarray:
        """Kept positions along the dimension, `[..., kept]`, from the kept units of its axes, each `[..., kept]`."""
        return units.get(self, np.arange(self.size, dtype=np.int64))

    def __str__(self) -> str:
        return f"a{self.id}:{self.size}"


@dataclass(frozen=True)
class Product:
    factors: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return prod(factor.size for factor in self.factors)

    def axes(self) -> Iterator[Axis]:
        for factor in self.factors:
            yield from factor.axes()

    def narrowed_size(self, kept: Kept) -> int:
        return prod(factor.narrowed_size(kept) for factor in self.factors)

    def offset(self, position: int, kept: Kept) -> int:
        major, rest = self.factors[0], self.factors[1:]
        minor = rest[0] if len(rest) == 1 else Product(rest)
        whole, part = divmod(position, minor.size)
        return major.offset(whole, kept) * minor.narrowed_size(kept) + minor.offset(part, kept)

    def flat_index(self, units: Mapping[Axis, np.ndarray]) -> np.ndarray:
        index = self.factors[0].flat_index(units)
        for factor in self.factors[1:]:
            inner = factor.flat_index(units)
            index = index[..., :, None] * factor.size + inner[..., None, :]
            index = index.reshape(*index.shape[:-2], -1)
        return index

    def __str__(self) -> str:
        return "·".join(f"({f})" if isinstance(f, Sum) else str(f) for f in self.factors)


@dataclass(frozen=True)
class Sum:
    terms: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)

    def axes(self) -> Iterator[Axis]:
        for term in self.terms:
            yield from term.axes()

    def narrowed_size(self, kept: Kept) -> int:
        return sum(term.narrowed_size(kept) for term in self.terms)

    def offset(self, position: int, kept: Kept) -> int:
        start = narrowed = 0
        for term in self.terms:
            if position <= start + term.size:
                return narrowed + term.offset(position - start, kept)
            start, narrowed = start + term.size, narrowed + term.narrowed_size(kept)
        raise ValueError(f"position {position} lies outside of {self}")

    def flat_index(self, units: Mapping[Axis, np.ndarray]) -> np.ndarray:
        starts = np.cumsum([0, *(term.size for term in self.terms)])
        parts = [term.flat_index(units) + start for term, start in zip(self.terms, starts, strict=False)]
        leading = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return np.concatenate([np.broadcast_to(p, (*leading, p.shape[-1])) for p in parts], axis=-1)

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


Dim = Axis | Product | Sum


def coarse(dim: Dim, fine: Container[Axis]) -> Dim:
    """The same dimension with everything but the axes in `fine` merged as far as it goes: equal for equal positions."""
    if isinstance(dim, Axis) or not any(axis in fine for axis in dim.axes()):
        return dim if isinstance(dim, Axis) and dim in fine else Axis(-1, dim.size)
    parts: list[Dim] = []
    for part in dim.factors if isinstance(dim, Product) else dim.terms:
        part = coarse(part, fine)
        if (
            parts
            and part.size
            and isinstance(part, Axis)
            and isinstance(parts[-1], Axis)
            and part.id == parts[-1].id == -1
        ):
            last = parts.pop().size
            part = Axis(-1, last * part.size if isinstance(dim, Product) else last + part.size)
        parts.append(part)
    return Product(tuple(parts)) if isinstance(dim, Product) else Sum(tuple(parts))


def extent_of(size: int | torch.SymInt) -> tuple[int, Extent]:
    """A size as (its value for the example inputs, its exact form)."""
    if isinstance(size, torch.SymInt):
        expr = size.node.expr
        if not expr.is_number:
            hint = size.node.hint
            return (_stand_in(size) if hint is None else int(hint)), expr
        size = int(expr)
    return int(size), int(size)


def _stand_in(size: torch.SymInt) -> int:
    """A value for a size that depends on the data, such as the number of tokens that an expert is given: each unknown
    in it is a large prime of its own, which no other size is mistaken for.
    """
    expr, known = size.node.expr, size.node.shape_env.backed_var_to_val
    numbers = {s: int("".join(filter(str.isdigit, s.name))) for s in expr.free_symbols}
    return int(expr.xreplace({s: known[s] if s in known else prime(200 + i) for s, i in numbers.items()}))
