"""How many of the layers' parameters take part in a step, on the average of draws; each counts once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, prod

from torch import nn

from estfx.programs import resolve
from estfx.tracing import LayerCall

__all__ = ["CallAtWork", "chance_to_run", "parameters_at_work"]


@dataclass(frozen=True)
class CallAtWork:
    """A call of a layer in a stage."""

    call: LayerCall
    droppable: bool
    kept: Mapping[str, int]  # numbers of each weight that take part when it runs, by path in the layer


def chance_to_run(calls: int, kept: int, total: int) -> float:
    """That at least one of so many calls is among the `kept` that are drawn of `total`, every draw as likely."""
    draws = comb(total, kept)
    return (draws - comb(total - calls, kept)) / draws


def parameters_at_work(each: Iterable[CallAtWork], kept: int) -> float:
    """Numbers of the layers' parameters that take part when `kept` of the droppable calls run.

    The calls of one module share its units. A parameter that several modules share is counted as if they were drawn
    independently of each other.
    """
    calls = list(each)
    total = sum(at_work.droppable for at_work in calls)
    modules: dict[str, list[CallAtWork]] = {}
    for at_work in calls:
        modules.setdefault(at_work.call.path, []).append(at_work)
    shares: dict[int, tuple[int, dict[str, float]]] = {}  # parameter → its size, and the share that each module takes
    for path, own in modules.items():
        runs = chance_to_run(len(own), kept, total) if all(at_work.droppable for at_work in own) else 1.0
        for at_work in own:
            for name, numbers in at_work.kept.items():
                parameter = resolve(at_work.call.module, name)
                if isinstance(parameter, nn.Parameter):
                    _, by_module = shares.setdefault(id(parameter), (parameter.numel(), {}))
                    by_module[path] = max(by_module.get(path, 0.0), numbers * runs)
    return sum(
        next(iter(by_module.values()))
        if len(by_module) == 1
        else size * (1 - prod(1 - n / size for n in by_module.values()))
        for size, by_module in shares.values()
    )
