"""No rule claims too little: what it keeps whole or ties together could not be narrowed by itself.

`brute_force` finds a rule that claims too much. Here the inputs of every row are narrowed in ways that the rule does
not allow: along an axis that it pins, or in some of the places alone that it says are one axis. If the operator then
gives what it gave before, at those units, the rule could have allowed it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from brute_force import Row, make_inputs, record, walk

from estfx.graphs import tags
from estfx.graphs.dimensions import Axis

Places = list[tuple[int, int]]  # (input, dimension)


def rows() -> Iterator[tuple[str, Row]]:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path == Path(__file__) or path.stem == "test_tables":
            continue
        spec = importlib.util.spec_from_file_location(f"rows_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for row in module.ROWS:
            yield f"{path.stem.removeprefix('test_')}: {row}", row


def disallowed(axes: tags.Axes, inputs: list[torch.fx.Node]) -> Iterator[tuple[Axis, Places]]:
    """Places along one axis that the rule does not allow to be narrowed by themselves."""
    places: dict[Axis, Places] = {}
    for i, node in enumerate(inputs):
        for position, dim in enumerate(axes.dims[node.name]):
            if isinstance(dim, Axis) and dim.size > 1:
                places.setdefault(dim, []).append((i, position))
    for axis, found in places.items():
        for count in range(1, len(found) + 1):
            for chosen in combinations(found, count):
                if axis in axes.pins or count < len(found):
                    yield axis, list(chosen)


def gives_a_part(row: Row, inputs: list[torch.Tensor], axis: Axis, places: Places) -> bool:
    """Whether, narrowed in these places, the function gives what it gives else, at those units, whichever they are."""
    whole = results(row, inputs)
    rng = np.random.default_rng(0)
    for count in sorted({1, axis.size - 1}):
        units = torch.from_numpy(np.sort(rng.choice(axis.size, count, replace=False)))
        narrowed = list(inputs)
        for i, position in places:
            narrowed[i] = narrowed[i].index_select(position, units)
        try:
            part = results(row, narrowed)
        except Exception:  # sizes that it was told, or that no longer fit
            return False
        if not all(is_part(w, p, units, axis.size) for w, p in zip(whole, part, strict=True)):
            return False
        if all(w.shape == p.shape for w, p in zip(whole, part, strict=True)):
            return False  # it does not matter, here
    return True


def is_part(whole: torch.Tensor, part: torch.Tensor, units: torch.Tensor, size: int) -> bool:
    """Whether `part` is `whole` at these units of some of its dimensions."""
    if whole.ndim != part.ndim:
        return False
    for position, (before, after) in enumerate(zip(whole.shape, part.shape, strict=True)):
        if before != after:
            if (before, after) != (size, len(units)):
                return False
            whole = whole.index_select(position, units)
    return torch.equal(whole, part)


def results(row: Row, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    given = row.function(*(x.clone() for x in inputs))
    return [given] if isinstance(given, torch.Tensor) else list(given)


ROWS = dict(rows())


@pytest.mark.parametrize("name", ROWS)
def test_a_rule_claims_enough(name: str) -> None:
    row = ROWS[name]
    inputs = make_inputs(row.inputs, np.random.default_rng(len(str(row))))
    recorded = record(row.function, [x.clone() for x in inputs])
    axes = walk(recorded)
    missed = [places for axis, places in disallowed(axes, recorded.inputs) if gives_a_part(row, inputs, axis, places)]
    assert not missed
