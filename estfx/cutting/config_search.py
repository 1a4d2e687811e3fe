"""Finds a configuration from which the model's own class builds the cut: by search, and by proof.

Nothing is known of names. Numbers of the configuration are given the values that the sizes of the weights suggest, and
lists with an item for each layer lose those of the layers that are left out, until a model built from it has exactly
the shapes that the cut has. Shapes alone are not enough: it must compute the same, too.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from estfx.cutting.attribute_search import Sizes, values_of
from estfx.cutting.edits import Edit, Path, apply_edits, for_fewer_layers, held_values, value_at
from estfx.cutting_entry import ENTRY
from estfx.stand_ins import stand_in_for

__all__ = ["ConfigCandidate", "Depth", "configurations"]

WIDTH = 12  # sets of edits that are followed from each length to the next
LENGTH = 6  # sets of edits have so many members at most
TRIES = 1_500
PROVED = 40  # candidates of the right shapes at most
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Depth:
    """How many layers a list has, and which of them stay."""

    whole: int
    left: tuple[int, ...]


@dataclass(frozen=True)
class ConfigCandidate:
    """A configuration whose model has the right shapes."""

    config: Any
    edits: tuple[Edit, ...]
    tries: int  # models that were built so far, to find it


@dataclass
class _Search:
    cls: type[nn.Module]
    config: Any
    wanted: Shapes
    tries: int = 0

    def misfits(self, edits: Sequence[Edit]) -> int | None:
        """How many names and sizes differ from those that are wanted; None if no model can be built."""
        self.tries += 1
        try:
            with torch.device("meta"):
                model = self.cls(self.edited(edits))
        except Exception:
            return None
        found = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        number = 2 * len(found.keys() ^ self.wanted.keys())
        for name in found.keys() & self.wanted.keys():
            have, want = found[name], self.wanted[name]
            number += sum(a != b for a, b in zip(have, want, strict=False)) + abs(len(have) - len(want))
        return number

    def read_and_none(self) -> list[Path]:
        """What the class reads while it builds a model, and is None."""
        read: set[tuple[int, str]] = set()
        config = self.edited(())
        holders = [config, *(value_at(config, path[:-1]) for path, _ in held_values(config) if len(path) > 1)]
        for holder in {id(each): each for each in holders if not isinstance(each, Mapping)}.values():
            lookup: Any = type(holder).__getattribute__

            def noted(own: Any, name: str, lookup: Any = lookup) -> Any:
                read.add((id(own), name))
                return lookup(own, name)

            with suppress(TypeError):
                holder.__class__ = stand_in_for(type(holder), {"__getattribute__": noted})
        with suppress(Exception), torch.device("meta"):
            self.cls(config)
        nothing = [path for path, value in held_values(config) if value is None and not str(path[-1]).startswith("_")]
        return [path for path in nothing if (id(value_at(config, path[:-1])), path[-1]) in read]

    def edited(self, edits: Sequence[Edit]) -> Any:
        """The configuration with these values, as it is when it was saved and is loaded again."""
        made = copy.deepcopy(self.config)
        apply_edits(made, edits)
        attention = getattr(made, "_attn_implementation", None)
        made = type(made).from_dict(made.to_dict())
        if attention is not None:
            made._attn_implementation = attention
        return made


def configurations(
    model: nn.Module, wanted: Shapes, sizes: Sizes, depths: Collection[Depth], units: Collection[int]
) -> Iterator[ConfigCandidate]:
    """Configurations of which the model has the wanted shapes by name, those with the fewest edits first.

    `sizes`: of dimensions that became narrower, before and now. `units`: how many rows or columns one unit has, such as
    the size of a head, which a configuration may leave to be worked out from the number of heads.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(type(config), "from_dict") or getattr(config, ENTRY, None):
        return  # no class of transformers, or a cut by attributes itself
    search = _Search(type(model), config, wanted)
    first = search.misfits(())
    if first is None:  # it is not the configuration alone from which the class builds a model
        return
    lists = tuple(_filtered(config, depths))
    nothing = search.read_and_none()
    moves = [*_moves(config, sizes, depths)]
    moves += [Edit(path, after) for path in nothing for after in sorted({after for _, after in sizes})]
    named = [(Edit(path, unit),) for path in nothing for unit in sorted(units)]
    starts = [lists, ()] if lists else [()]
    starts += [(*lists, *edits) for edits in named if search.misfits(edits) == first]
    silent: list[Edit] = []
    given = 0
    seen: set[frozenset[tuple[Path, str]]] = set()
    level: list[tuple[int, tuple[Edit, ...]]] = []
    for start in starts:
        found = search.misfits(start)
        if found == 0:
            given += 1
            yield ConfigCandidate(search.edited(start), start, search.tries)
        level.append((first if found is None else found, start))
    fitting: list[tuple[Edit, ...]] = [start for found, start in level if found == 0]
    for length in range(LENGTH):
        following: list[tuple[int, tuple[Edit, ...]]] = []
        for before, edits in level:
            taken = {edit.path for edit in edits[len(lists) if edits[: len(lists)] == lists else 0 :]}
            for move in moves:
                if move.path in taken:
                    continue
                made = (*edits, move)
                key = frozenset((edit.path, str(edit.value)) for edit in made)
                if key in seen:
                    continue
                seen.add(key)
                if search.tries > TRIES:
                    return
                found = search.misfits(made)
                if length == 0 and found == before:
                    silent.append(move)
                if found == 0 and before != 0:
                    fitting.append(made)
                    given += 1
                    yield ConfigCandidate(search.edited(made), made, search.tries)
                elif found is None or found <= before:
                    following.append((before if found is None else found, made))
        if length == 0:  # what changes nothing by itself may still be what the code computes with
            quiet = {(move.path, str(move.value)) for move in silent}
            following = [each for each in following if (each[1][-1].path, str(each[1][-1].value)) not in quiet]
            moves = [move for move in moves if (move.path, str(move.value)) not in quiet]
        following.sort(key=lambda each: each[0])
        level = following[:WIDTH]
        if not level:
            break
    for edits in fitting:
        for move in silent:
            if given >= PROVED:
                return
            given += 1
            made = (*edits, move)
            if search.misfits(made) == 0:
                yield ConfigCandidate(search.edited(made), made, search.tries)


def _moves(config: Any, sizes: Sizes, depths: Collection[Depth]) -> Iterator[Edit]:
    """What one number of the configuration may become."""
    for path, value in held_values(config):
        if isinstance(value, bool) or str(path[-1]).startswith("_"):
            continue
        if isinstance(value, int):
            for depth in depths:
                if value == depth.whole:
                    yield Edit(path, len(depth.left))
                elif 0 < value < depth.whole:
                    below = sum(number < value for number in depth.left)
                    if below != value:
                        yield Edit(path, below)
            for new in values_of(value, sizes):
                if not any(value == depth.whole and new == len(depth.left) for depth in depths):
                    yield Edit(path, new)
        elif isinstance(value, (list, tuple)) and all(isinstance(x, int) and not isinstance(x, bool) for x in value):
            for new in values_of(value, sizes):
                yield Edit(path, new)


def _filtered(config: Any, depths: Collection[Depth]) -> Iterator[Edit]:
    """Lists of something for each layer, or of positions of layers, without those that are left out."""
    for path, value in held_values(config):
        for depth in depths:
            shorter = for_fewer_layers(value, depth.whole, depth.left)
            if shorter is not None and not str(path[-1]).startswith("_"):
                yield Edit(path, shorter)
                break
