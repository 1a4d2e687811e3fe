"""Draws: what a step keeps is a pure function of the seed, the step, the role and the layer, and of scores, if a
policy ranks units by them. Scores are learnt as the model trains, and are a part of its state (runtime/selection.py).

The generator is Philox, which is keyed and counter-based, read through `random_raw`, whose stream numpy keeps stable
(its distributions may change between releases). So a draw needs no checkpoint and is the same on every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from estfx.errors import EstfxError
from estfx.settings import nearest

__all__ = [
    "CYCLE",
    "POLICIES",
    "SCORES",
    "Draw",
    "Policy",
    "PolicyName",
    "Scores",
    "draw_layers",
    "draw_units",
    "selection_policy",
    "spread_layers",
]

CYCLE = 2_000  # optimizer steps in which a rolling window goes round, if a schedule does not say
_WORD = 2**64


@dataclass(frozen=True)
class Draw:
    """What a selection policy is asked: which `kept` of `size` units each of `num_layers` layers keeps at a step."""

    seed: int
    step: int
    role: str  # "heads", "neurons", "channels"; a second axis of a role in a layer: "neurons_2"
    num_layers: int
    size: int
    kept: int  # more than 0, less than size
    # of every unit, `[num_layers, size]`, the higher the better, infinite for one that never was at work; None, if the
    # policy was registered without scores, or nothing was learnt of them yet
    scores: NDArray[np.float64] | None = field(default=None, compare=False)
    exploration: float = 0.0  # the share of the kept units that the schedule wants drawn at random
    cycle: int = CYCLE  # optimizer steps in which the schedule wants all units to have had their turn

    def words(self, number: int) -> NDArray[np.uint64]:
        """That many random numbers, all of 64 bits alike: the same ones for the same seed, step, role and size."""
        words: NDArray[np.uint64] = _philox(self.seed, self.step, self.role, self.size).random_raw(number)
        return words


Policy = Callable[[Draw], NDArray[np.int64]]

Scores = Literal["weight", "weighted_gradient"]

POLICIES: dict[str, Policy] = {}  # by the name that a schedule gives
SCORES: dict[str, Scores] = {}  # by policy, what the units are scored by; none for one that asks for no scores


def selection_policy(name: str, *, scores: Scores | None = None, replace: bool = False) -> Callable[[Policy], Policy]:
    """Registers a selection policy: `Schedule(policy=name)` then draws the units of every role by it.

    The function that is decorated takes a `Draw` and returns the kept units, int64 `[num_layers, kept]`, each row
    ascending and without repetition. It must be a pure function of the draw: it is called on every rank, ahead of its
    step and in another thread, again after a resume, and by `estfx report`. It is not called for what is kept whole.

    With `scores` it finds a score of every unit in `draw.scores`, taken anew every `Schedule.refresh_every` steps and
    at the beginning of each stage: the sum over the unit's weights of their magnitude (`"weight"`), or of
    |weight · gradient|, as a running mean over the steps that trained the unit (`"weighted_gradient"`).

    Raises EstfxError if there is a policy of that name, unless `replace`.
    """

    def register(policy: Policy) -> Policy:
        if name in POLICIES and not replace:
            raise EstfxError(
                f"there is a selection policy {name!r} already, of {POLICIES[name].__module__}; choose another name, "
                "or pass replace=True."
            )
        POLICIES[name] = policy
        SCORES.pop(name, None)
        if scores is not None:
            SCORES[name] = scores
        return policy

    return register


def _known_policy(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(
            f"unknown selection policy {name!r}; {nearest(name, POLICIES)} "
            "One of your own must be registered before, with estfx.selection_policy."
        )
    return name


PolicyName = Annotated[str, AfterValidator(_known_policy)]  # of one that is registered


def draw_units(
    policy: str,
    *,
    seed: int,
    step: int,
    role: str,
    num_layers: int,
    size: int,
    kept: int,
    scores: NDArray[np.float64] | None = None,
    exploration: float = 0.0,
    cycle: int = CYCLE,
) -> NDArray[np.int64]:
    """Draws `kept` of `size` units for each of `num_layers` layers by the policy of that name.

    Returns indices `[num_layers, kept]`, each row ascending and without repetition. For the policies that estfx brings,
    row i depends on (seed, step, role, i, size) and on its own scores alone, not on how many layers there are.

    Raises EstfxError if there is no such policy, or what it returns is no such array.
    """
    if not 0 < kept <= size:
        raise ValueError(f"cannot draw {kept} of {size} units")
    if policy not in POLICIES:
        raise EstfxError(f"there is no selection policy {policy!r}; there are {', '.join(POLICIES)}.")
    if kept == size:
        return np.tile(np.arange(size, dtype=np.int64), (num_layers, 1))
    draw = Draw(seed, step, role, num_layers, size, kept, scores, exploration, cycle)
    drawn = POLICIES[policy](draw)
    if POLICIES[policy] not in (_random, _window, _rolling, _highest):
        _check(policy, draw, drawn)
    return drawn


def _check(policy: str, draw: Draw, drawn: object) -> None:
    """Raises EstfxError for units that cannot be: what is kept would be computed wrongly in silence."""
    asked = f"the selection policy {policy!r} was asked for {draw.kept} of {draw.size} {draw.role} in each of "
    asked += f"{draw.num_layers} layers at step {draw.step}, and "
    shape = (draw.num_layers, draw.kept)
    if not isinstance(drawn, np.ndarray) or drawn.dtype != np.int64 or drawn.shape != shape:
        of = f" of {drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else ""
        raise EstfxError(f"{asked}returned a {type(drawn).__name__}{of}; it must be an array of int64 {list(shape)}.")
    if drawn.min() < 0 or drawn.max() >= draw.size:
        raise EstfxError(f"{asked}returned units from {drawn.min()} to {drawn.max()}; there are 0 to {draw.size - 1}.")
    if (np.diff(drawn, axis=1) <= 0).any():
        raise EstfxError(f"{asked}returned a row that does not rise; sort it, and name no unit twice.")


@selection_policy("random")
def _random(draw: Draw) -> NDArray[np.int64]:
    """Every subset with the same chance. With a smaller `kept`, a subset of the same units."""
    return _smallest(_random_keys(draw), draw.kept)


@selection_policy("window")
def _window(draw: Draw) -> NDArray[np.int64]:
    """One contiguous run, all offsets from 0 to `size - kept` alike.

    Units near both ends lie in fewer windows and so are drawn more rarely than those in the middle (the first unit with
    a chance of 1 / (size - kept + 1), not kept / size).
    """
    offsets = draw.words(draw.num_layers) % np.uint64(draw.size - draw.kept + 1)  # bias below size / 2^64
    return offsets.astype(np.int64)[:, None] + np.arange(draw.kept, dtype=np.int64)


@selection_policy("rolling")
def _rolling(draw: Draw) -> NDArray[np.int64]:
    """A run of neighbours that moves on, one unit after the other, evenly, and begins again after the last.

    It goes round in `cycle` steps. So the part changes slowly, and every unit is at work as long as any other. Each
    layer begins somewhere else, at random. With a larger `kept`, a run that begins with the same units.

    Source: FedRolex (arXiv 2212.01548), where it moves from one client to the next.
    """
    begins = replace(draw, step=0).words(draw.num_layers) % np.uint64(draw.size)
    now = (begins.astype(np.int64) + draw.step * draw.size // draw.cycle)[:, None]
    return np.sort((now + np.arange(draw.kept, dtype=np.int64)) % draw.size, axis=1)


@selection_policy("weight_magnitude", scores="weight")
@selection_policy("weighted_gradient_magnitude", scores="weighted_gradient")
def _highest(draw: Draw) -> NDArray[np.int64]:
    """The units with the highest scores, but for the share of them that is drawn at random among the others."""
    if draw.scores is None:
        return _random(draw)
    explored = round(draw.exploration * draw.kept)
    order = np.argsort(-draw.scores, axis=1, kind="stable")
    keys = _random_keys(draw).astype(np.int64)
    np.put_along_axis(keys, order[:, : draw.kept - explored], -1, axis=1)
    return _smallest(keys, draw.kept)


def draw_layers(*, seed: int, step: int, num_layers: int, kept: int, always: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Draws which layers run: booleans `[num_layers]`, exactly `kept` of them true, those in `always` among them."""
    runs = np.zeros(num_layers, dtype=np.bool_)
    runs[list(always)] = True
    others = np.flatnonzero(~runs)
    more = kept - (num_layers - len(others))
    if more > 0:
        drawn = draw_units("random", seed=seed, step=step, role="layers", num_layers=1, size=len(others), kept=more)
        runs[others[drawn[0]]] = True
    return runs


def spread_layers(num_layers: int, counts: Sequence[int], always: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Which layers run, evenly spread, as their number grows through `counts`: booleans `[num_layers]`, for the last.

    Those of a smaller count, and those in `always`, are among those of a larger one.
    """
    runs = np.zeros(num_layers, dtype=np.bool_)
    runs[list(always)] = True
    if not runs.any():
        runs[[number * num_layers // counts[0] for number in range(counts[0])]] = True
    for count in counts:
        while np.count_nonzero(runs) < count:
            begins = sorted({0, *map(int, np.flatnonzero(runs))})  # of a layer that runs and the others up to the next
            lengths = np.diff([*begins, num_layers])
            if not runs[0]:
                lengths[0] += 1  # it has none that runs
            longest = int(np.argmax(lengths))
            begin = begins[longest]
            runs[begin + (lengths[longest] + 1) // 2 if runs[begin] else begin] = True
    return runs


def _random_keys(draw: Draw) -> NDArray[np.uint32]:
    """One 32-bit key a unit, `[num_layers, size]`; every row starts at a fresh 64-bit word."""
    words_per_row = (draw.size + 1) // 2
    words = draw.words(draw.num_layers * words_per_row)
    keys = words.astype("<u8", copy=False).view("<u4")  # the byte order is part of the stream
    return keys.reshape(draw.num_layers, 2 * words_per_row)[:, : draw.size]


def _smallest(keys: NDArray[Any], kept: int) -> NDArray[np.int64]:
    """The columns of the `kept` smallest keys of each row, ascending; of equal keys the first."""
    threshold = np.partition(keys, kept - 1, axis=1)[:, kept - 1 : kept]
    chosen = keys <= threshold
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) != kept):  # equal keys at the threshold: rare
        chosen[row] = False
        chosen[row, np.argsort(keys[row], kind="stable")[:kept]] = True
    flat: NDArray[np.int64] = np.flatnonzero(chosen).reshape(len(keys), kept)  # 10 times faster than a 2-d nonzero
    row_starts: NDArray[np.int64] = np.arange(0, keys.size, keys.shape[1], dtype=np.int64)
    return flat - row_starts[:, None]


def _philox(seed: int, step: int, role: str, size: int) -> np.random.Philox:
    # the lowest counter word counts within a draw; it never overflows into the next
    key = np.array([seed % _WORD, _role_key(role)], dtype=np.uint64)
    counter = np.array([0, 0, step % _WORD, size], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


@lru_cache
def _role_key(role: str) -> int:
    return int.from_bytes(hashlib.blake2b(role.encode(), digest_size=8).digest(), "little")
