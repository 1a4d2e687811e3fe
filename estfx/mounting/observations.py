"""What was seen of two runs of a model, and in what they differ.

Of a large tensor no copy is kept, but a fingerprint: a sum over its bits, and where a graph equals its layer up to
rounding alone, a projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from estfx.programs import direction

__all__ = ["ROUNDING", "SMALL", "Fingerprint", "Observations", "difference_from", "differs_in_last_bits", "kept"]

ROUNDING = 1e-3  # of a projection, relative to the length of what is projected, where graphs round otherwise
LAST_BITS = 4  # times the spacing of numbers at 1, relative to the length of a tensor: a sum in another order
CHUNK = 1 << 22  # numbers of a large tensor that are looked at together
ROWS = 64  # in which each piece is summed
SMALL = 1 << 16  # up to so many numbers, a copy is kept


@dataclass(frozen=True)
class Fingerprint:
    """Of a tensor: equal bits give an equal sum; the projection is along a fixed direction without symmetry."""

    shape: tuple[int, ...]
    bits: int
    projection: float
    length: float

    def same(self, other: Fingerprint, rounding: float) -> bool:
        if self.shape != other.shape:
            return False
        if self.bits == other.bits:
            return True
        error = abs(self.projection - other.projection)
        return rounding > 0 and error <= rounding * max(self.length, other.length)


Seen = Mapping[str, Any]  # what a run gave, by name
Observations = Sequence[Seen]  # run by run


def kept(value: torch.Tensor) -> torch.Tensor | Fingerprint:
    """What is kept of a tensor, to be compared with another."""
    return value.detach().clone() if value.numel() <= SMALL else _fingerprint(value)


def _fingerprint(value: torch.Tensor) -> Fingerprint:
    """Sums of its pieces, of as many bits at once as an integer has, and of its numbers: quick, with little memory.

    They are taken along rows and across them: the same numbers in another order give others.
    """
    flat = value.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bits, projection, squares = 0, 0.0, 0.0
    for number, piece in enumerate(flat.split(CHUNK)):
        if missing := -len(piece) % (8 * ROWS):
            piece = torch.nn.functional.pad(piece, (0, missing))
        piece = piece + 0.0 if piece.is_floating_point() else piece  # a zero has one sign
        rows = piece.view(ROWS, -1)
        words = rows.view(torch.int64)
        across = words.sum(0)
        across = (across ^ (across >> 31)) * torch.arange(1, len(across) + 1, device=across.device)
        for each in (*words.sum(1).tolist(), int(across.sum())):
            bits = (bits * 1_000_003 + each) % (1 << 64)
        if piece.is_floating_point():
            dtype = torch.promote_types(torch.float32, piece.dtype)
            for sums in (rows.sum(1, dtype=dtype).double(), rows.sum(0, dtype=dtype).double()):
                projection += float((sums * direction(sums)).sum()) * math.cos(number)
            squares += float(torch.linalg.vector_norm(piece.float() if piece.itemsize < 4 else piece)) ** 2
    return Fingerprint(tuple(value.shape), bits, projection, math.sqrt(squares))


def difference_from(want: Observations, got: Observations, *, exact: bool) -> list[str]:
    """What is not the same, in words; up to rounding unless `exact`."""
    rounding = 0.0 if exact else ROUNDING
    found = []
    for number, (before, now) in enumerate(zip(want, got, strict=True), 1):
        for name in {**before, **now}:
            if name not in before or name not in now:
                found.append(f"{name} is {'new' if name in now else 'missing'} in run {number}")
            elif not _equal(before[name], now[name], rounding):
                found.append(f"{name} of run {number}{_how_far(before[name], now[name])}")
    return found


def differs_in_last_bits(want: Observations, got: Observations) -> bool:
    """Whether all that differs does so by rounding alone: the same numbers were added up in another order.

    A sum over what lies in memory otherwise, such as the gradient of a weight of several branches, may come to that.
    """
    return all(
        name in before and name in now and (_equal(before[name], now[name], 0.0) or _nearly(before[name], now[name]))
        for before, now in zip(want, got, strict=True)
        for name in {**before, **now}
    )


def _nearly(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype:
        return one.is_floating_point() and _error(one, other) <= LAST_BITS * torch.finfo(one.dtype).eps
    both = isinstance(one, Fingerprint) and isinstance(other, Fingerprint)
    return both and one.same(other, LAST_BITS * torch.finfo(torch.float32).eps)


def _equal(one: Any, other: Any, rounding: float) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other) or _error(one, other) <= rounding
    if isinstance(one, Fingerprint) and isinstance(other, Fingerprint):
        return one.same(other, rounding)
    return type(one) is type(other) and bool(one == other)


def _error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the longer of the two; infinite for other shapes or for NaN on one side alone."""
    if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return math.inf
    first, second = (torch.view_as_real(x) if x.is_complex() else x.nan_to_num() for x in (one, other))
    first, second = first.double(), second.double()
    return float((first - second).norm() / torch.maximum(first.norm(), second.norm()).clamp(min=1e-300))


def _how_far(one: Any, other: Any) -> str:
    if any(not isinstance(x, (torch.Tensor, Fingerprint)) for x in (one, other)):
        return ""
    if tuple(one.shape) != tuple(other.shape):
        return f" (shape {list(other.shape)} instead of {list(one.shape)})"
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return f" (relative error {_error(one, other):.0e})"
    error = abs(one.projection - other.projection) / (max(one.length, other.length) or 1.0)
    return f" (relative error about {error:.0e})"
