"""Is it the family or the initialisation? GPT-2 and Llama, each with its closing projections divided at first and not.

GPT-2 divides the initial weights of the projections that close a branch by √(2 · layers), Llama does not. So the two
families alone differ in two things at once. With both forms of both there are four kinds of runs. The effect of the
family is the mean of the two Llamas less that of the two GPT-2s; that of the division is the mean of the two divided
ones less that of the others. Of both together: by how much more the division does to Llama than to GPT-2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import claims
import numpy as np
from behind import Results, losses_above
from claims import Difference
from compared import difference, works_of

__all__ = ["CELLS", "EFFECTS", "effect", "factor_table"]

# experiment → Llama or GPT-2 (+1, -1), divided or not (+1, -1)
CELLS = {"tuned-mini-gpt2": (-1, 1), "init-gpt2": (-1, -1), "tuned-mini-llama": (1, -1), "init-llama": (1, 1)}
TITLES = dict(zip(CELLS, ("GPT-2", "GPT-2, undivided", "Llama", "Llama, divided"), strict=True))
# with what weight a kind of run is in the sum
EFFECTS = {
    "of Llama": lambda family, divided: family / 2,
    "of the division": lambda family, divided: divided / 2,
    "of both together": lambda family, divided: family * divided,
}
ARMS = {"dense-short": "dense for as many FLOPs", "est": "EST", "compound": "compound"}


def effect(name: str, arm: str, cells: Mapping[str, Results]) -> Difference | None:
    """An effect on what an arm loses against dense, over the seeds that all four kinds of runs have; None if none."""
    pairs = {cell: (cells[cell].get(arm, {}), cells[cell].get("dense", {})) for cell in CELLS}
    seeds = sorted(set.intersection(*(own.keys() & dense.keys() for own, dense in pairs.values())))
    if not seeds:
        return None
    weights = {cell: EFFECTS[name](*factors) for cell, factors in CELLS.items()}
    losses_SB = sum(weights[cell] * losses_above(own, dense, seeds) for cell, (own, dense) in pairs.items())
    any_run = pairs["tuned-mini-gpt2"][0][seeds[0]]  # all have the same held-out text
    return claims.difference(np.asarray(losses_SB), *works_of(any_run))


def factor_table(cells: Mapping[str, Results]) -> Iterator[str]:
    """What each arm loses against dense in each kind of run, and the effects on it."""
    heads = ["loses against dense", *TITLES.values(), *(f"effect {name}" for name in EFFECTS)]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for arm, what in ARMS.items():
        losses = [difference(cells[cell].get(arm, {}), cells[cell].get("dense", {})) for cell in TITLES]
        effects = [effect(name, arm, cells) for name in EFFECTS]
        yield f"| {' | '.join([what, *('' if found is None else str(found) for found in (*losses, *effects))])} |"
