"""`estfx.children`: parts of a model, drawn at random, as models of their own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from estfx.cutting import cut
from estfx.errors import EstfxError
from estfx.programs import analysed, verify_kind
from estfx.schedules import Subnetwork, kept_count
from estfx.tracing import ATTRIBUTE, LayerPatterns, at_rest, in_mode, trace
from estfx.waiting import tell, working

__all__ = ["children"]

Pairs = Literal["complementary", "random"]


@working("looking for the layers")
def children(
    model: nn.Module,
    number: int = 2,
    keep: float = 0.5,
    pairs: Pairs = "complementary",
    *,
    seed: int = 0,
    scaled: bool = True,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
) -> list[Any]:
    """Parts of a model, each cut out as a smaller model of the same class: the same layers, other heads and neurons.

    Each child is to be tuned briefly, as with `torch.optim.lr_scheduler.OneCycleLR`. An `Ensemble` of them then
    answers with the mean of what they say.

    Args:
        model: any decoder, transformed or not. It stays as it is.
        number: of children.
        keep: the share of heads and of neurons that a child keeps in each layer.
        pairs: `"complementary"`: the second, fourth, … child has the units that the one before it has not, as far as
            they go; with halves each unit is in one child of a pair. `"random"`: each child is drawn alone.
        seed: of the draws.
        scaled: sums over kept units are multiplied by total / kept, as when a part of a model trains.
        example_inputs: as `transform` takes them.
        named_layers: as `transform(layers=…)` takes them.

    Raises:
        EstfxError: numbers that cannot be; a model in which nothing can be narrowed.
        UnsupportedModelError: what `estfx.cut` cannot express.

    Source: Whitaker and Whitley, Prune and Tune Ensembles, arXiv 2202.11782.
    """
    if number < 1:
        raise EstfxError(f"number={number}: at least one child is wanted.")
    if not 0 < keep < 1:
        raise EstfxError(f"keep={keep}: a child keeps a share above 0 and below 1 of heads and neurons.")
    if pairs not in get_args(Pairs):
        raise EstfxError(f"pairs={pairs!r}: children are drawn {' or '.join(get_args(Pairs))}.")
    runtime = vars(model).get(ATTRIBUTE)
    named_layers = runtime.named if named_layers is None and runtime is not None else named_layers
    with at_rest(model), in_mode(model, training=False):
        decoder = trace(model, example_inputs, layers=named_layers)
        variants = {name: analysed(traced) for name, traced in decoder.traced.items()}
        calls = {info.program: info.call for info in decoder.infos.values()}
        for name, variant in variants.items():
            tell("verifying what was found")
            verify_kind(variant, calls[name])  # which finds units that must not be scaled
        sizes = {
            name: {role.name: role.axis.size for role in variants[info.program].roles.found}
            for name, info in decoder.infos.items()
        }
    if not any(sizes.values()):
        raise EstfxError("no heads and no neurons are found in this model, so that children would all be the whole.")
    draw, found = random.Random(seed), []
    before: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    for child in range(number):
        follows = pairs == "complementary" and child % 2 == 1
        units = _drawn(sizes, keep, draw, before if follows else None)
        before = units
        tell(f"cutting out child {child + 1} of {number}")
        layers = dict.fromkeys(decoder.order, True)
        part = Subnetwork(step=child, layers=layers, units=units, _parameters=dict, scales=scaled)
        found.append(cut(model, part, example_inputs=example_inputs, named_layers=named_layers))
    return found


def _drawn(
    sizes: Mapping[str, Mapping[str, int]],
    keep: float,
    draw: random.Random,
    before: Mapping[str, Mapping[str, torch.Tensor]] | None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The units of a child; those that another has come last."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, roles in sizes.items():
        for role, size in roles.items():
            order = draw.sample(range(size), size)
            if before is not None:
                taken = set(before[name][role].tolist())
                order.sort(key=lambda unit: unit in taken)
            found.setdefault(name, {})[role] = torch.tensor(sorted(order[: kept_count(size, keep)]))
    return found
