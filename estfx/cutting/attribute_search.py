"""Finds the numbers that a module's code reads and that have to change with its weights: by search, and by proof.

Nothing is known of names. A number is tried if the code read it before it failed, or before it gave a wrong result. Its
new value is what the graph says of its old one: the sizes of dimensions before they were narrowed, and after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import nn

from estfx.cutting.edits import Edit, Path, applied, value_at
from estfx.cutting.number_reads import ReadNumbers, Run
from estfx.graphs import is_model_code

__all__ = ["Found", "Sizes", "search_numbers", "values_of"]

Sizes = Collection[tuple[int, int]]  # before, and now
WIDTH = 24  # sets of edits that are followed from each length to the next
DEPTH = 6  # edits at most
TRIES = 3_000
CHOICES = 4  # numbers of one list that may change or not, each


@dataclass
class Found:
    """What a search came to."""

    edits: tuple[Edit, ...] | None  # None: nothing fits
    tries: int
    best: Run | None = field(default=None, repr=False)  # of all that failed, the one that came farthest

    @property
    def why(self) -> str:
        """Why nothing fits, in words."""
        if self.best is None or self.best.error is None:
            return "it gives something else"
        error, place = self.best.error, ""
        where = error.__traceback__
        while where is not None:
            file = where.tb_frame.f_code.co_filename
            if is_model_code(file):
                place = f" at {file.rpartition('/')[2]}:{where.tb_lineno}"
            where = where.tb_next
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}{place}"


def search_numbers(
    root: nn.Module,
    run: Callable[[], Any],
    fits: Callable[[Any], bool],
    sizes: Sizes,
    start: Sequence[Edit] = (),
    leave_out: Sequence[nn.Module] = (),
    tries: int = TRIES,
) -> Found:
    """The fewest edits with which `run` gives what `fits`, beside those of `start`, which hold already.

    `leave_out`: modules within `root` whose numbers are left as they are.
    """
    reader = ReadNumbers(root, leave_out)
    number = 0
    best: tuple[int, Run] | None = None

    def tried(edits: tuple[Edit, ...]) -> tuple[bool, Run]:
        nonlocal number, best
        number += 1
        with applied(root, [*start, *edits]):
            ran = reader.run(run)
        if ran.error is None and fits(ran.result):
            return True, ran
        reached = ran.operations + (ran.error is None)
        if best is None or reached > best[0]:
            best = reached, ran
        return False, ran

    ok, ran = tried(())
    if ok:
        return Found((), number)
    level: list[tuple[tuple[Edit, ...], Run]] = [((), ran)]
    seen: set[frozenset[tuple[Path, str]]] = set()
    for _ in range(DEPTH):
        following: list[tuple[tuple[Edit, ...], Run]] = []
        for edits, before in level:
            taken = {edit.path for edit in edits}
            for path in before.read:
                if path in taken:
                    continue
                for value in values_of(_value(root, path, start), sizes):
                    made = (*edits, Edit(path, value))
                    key = frozenset((edit.path, str(edit.value)) for edit in made)
                    if key in seen:
                        continue
                    seen.add(key)
                    ok, ran = tried(made)
                    if ok:
                        return Found(made, number)
                    if number >= tries:
                        return _nothing(number, best)
                    following.append((made, ran))
        # those that came farthest are followed; of equal ones, those of which the last edit was read last
        following.sort(key=lambda each: -each[1].operations)
        level = following[:WIDTH]
        if not level:
            break
    return _nothing(number, best)


def _nothing(number: int, best: tuple[int, Run] | None) -> Found:
    return Found(None, number, best and best[1])


def _value(root: nn.Module, path: Path, start: Sequence[Edit]) -> Any:
    return next((edit.value for edit in reversed(start) if edit.path == path), None) or value_at(root, path)


def values_of(old: Any, sizes: Sizes) -> Iterator[Any]:
    """What a number may have become; of a list, each of its numbers."""
    if isinstance(old, (list, tuple)):
        choices = [[each, *_of_one(each, sizes)] for each in old]
        several = [i for i, each in enumerate(choices) if len(each) > 1]
        if not several:
            return
        if len(several) > CHOICES:
            yield type(old)(each[-1] if len(each) == 1 else each[1] for each in choices)
            return
        for made in product(*reversed(choices)):
            new = type(old)(reversed(made))
            if new != old:
                yield new
        return
    yield from _of_one(old, sizes)


def _of_one(old: int, sizes: Sizes) -> list[int]:
    exact = {after for before, after in sizes if before == old}
    share = {old * after // before for before, after in sizes if old % before == 0 or (old * after) % before == 0}
    return [*sorted(exact), *sorted(share - exact - {old, 0})]
