"""How often each layer, head and neuron was trained, drawn again from what made_with.json holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estfx.errors import EstfxError
from estfx.run_report.runs import Run
from estfx.runtime import drawn_layers
from estfx.schedules import SCORES, DrawnLayer, draw_step

__all__ = ["RoleMap", "TrainedUnits", "trained_units"]

SAMPLED = 2000  # steps that are drawn again at most
COLUMNS = 256
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RoleMap:
    """The share of the counted steps that trained each unit of a role; if there are many, neighbours share a column."""

    role: str
    layers: tuple[str, ...]
    sizes: tuple[int, ...]  # units by layer
    shares: Floats  # [layers, columns]
    least: float  # of all units, one by one
    mean: float
    most: float


@dataclass(frozen=True, eq=False)
class TrainedUnits:
    """Counts over the steps really done."""

    steps: int  # counted: all, or evenly chosen ones
    of: int  # done
    layers: tuple[str, ...]
    running: Floats  # [layers, columns]: the share of a column's steps in which the layer ran
    first: int  # step of the first column
    stop: int  # one past the last
    share_of_layers: Floats  # [layers], over all counted steps
    roles: tuple[RoleMap, ...]
    differing: int  # counted steps whose stage or layers were noted otherwise while they ran
    ranked: bool = False  # units were chosen by scores that the folder does not hold: there are no roles then

    @property
    def everything(self) -> bool:
        """Whether every step trained all there is."""
        units = not self.ranked and all(role.least == 1 for role in self.roles)
        return units and bool((self.share_of_layers == 1).all())


def trained_units(run: Run) -> TrainedUnits | None:
    """Draws the steps of a run again, `SAMPLED` of them at most. None if its folder does not say from what."""
    if run.made_with is None or run.schedule is None:
        return None
    try:
        layers = drawn_layers(run.made_with["layers"])
        return _count(run, layers, int(run.made_with["seed"]))
    except (EstfxError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _count(run: Run, layers: dict[str, DrawnLayer], seed: int) -> TrainedUnits:
    assert run.schedule is not None
    done = run.steps.step
    places = np.unique(np.linspace(0, len(done) - 1, min(SAMPLED, len(done))).round().astype(np.int64))
    ran = np.zeros((len(layers), len(places)))
    ranked = run.schedule.policy in SCORES and not run.dense
    sizes = {(name, role): size for name, layer in layers.items() for role, size in layer.sizes.items()}
    counts = {key: np.zeros(size) for key, size in sizes.items() if not ranked}
    differing = 0
    for column, place in enumerate(places):
        draw = draw_step(run.schedule, seed, layers, int(done[place]))
        ran[:, column] = list(draw.running.values())
        noted = run.steps.layers
        other_layers = noted is not None and noted[place] != sum(draw.running.values())
        differing += bool(other_layers or run.steps.stage[place] != draw.stage_index + 1)
        for (name, role), count in counts.items():
            if draw.running[name]:
                count[draw.units[name][role]] += 1
    shares = {key: count / len(places) for key, count in counts.items()}
    roles = dict.fromkeys(role for _, role in counts)
    return TrainedUnits(
        steps=len(places),
        of=len(done),
        layers=tuple(layers),
        running=_binned(ran, -(-len(places) // -(-len(places) // COLUMNS))),  # as many steps to each column
        first=int(done[0]),
        stop=int(done[-1]) + 1,
        share_of_layers=ran.mean(axis=1),
        roles=tuple(_role_map(role, {name: each for (name, r), each in shares.items() if r == role}) for role in roles),
        differing=differing,
        ranked=ranked,
    )


def _role_map(role: str, shares: dict[str, Floats]) -> RoleMap:
    columns = min(COLUMNS, max(len(each) for each in shares.values()))
    everything = np.concatenate(list(shares.values()))
    return RoleMap(
        role=role,
        layers=tuple(shares),
        sizes=tuple(len(each) for each in shares.values()),
        shares=np.concatenate([_binned(each[None], columns) for each in shares.values()]),
        least=float(everything.min()),
        mean=float(everything.mean()),
        most=float(everything.max()),
    )


def _binned(values_LN: Floats, columns: int) -> Floats:
    """Means of neighbours, `[layers, columns]`; where there are fewer values than columns, each is repeated."""
    size = values_LN.shape[1]
    starts = np.arange(columns) * size // columns
    stops = np.maximum(starts + 1, (np.arange(columns) + 1) * size // columns)
    sums = np.concatenate([np.zeros((len(values_LN), 1)), np.cumsum(values_LN, axis=1)], axis=1)
    means: Floats = (sums[:, stops] - sums[:, starts]) / (stops - starts)
    return means
