"""`estfx.stitch`: two decoders as one, with maps between their streams that begin by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from estfx.errors import EstfxError, UnsupportedModelError
from estfx.programs import analysed
from estfx.stitching.stitched import Ends, Stitched, small_stream
from estfx.tracing import LayerPatterns, at_rest, call_arguments, in_mode, trace, without_cache
from estfx.waiting import tell, working

__all__ = ["stitch"]

DAMPING = 1e-4  # of the Gram matrix of the small model's stream, relative to the mean of its diagonal


@working("looking for the layers")
def stitch(
    small: nn.Module,
    large: nn.Module,
    batches: Iterable[Any],
    *,
    stitches: Sequence[tuple[int, int]] | None = None,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
) -> Stitched:
    """A model with a palette of sizes between a small and a large decoder that read the same tokens.

    A stitch runs the first layers of the small one, a linear map, and the last layers of the large one. The maps begin
    as the least squares between the two streams on the given text. Tune the palette then: draw a stitch for each step
    (`stitched.draw()`), and call `stitched.note()` after its backward pass.

    Args:
        small: a decoder of any kind, such as a cut of the large one. It becomes a part of the result, as it is.
        large: likewise.
        batches: text, as the models' forward takes it; see `estfx.score`.
        stitches: for each, how many of the small model's layers run, and how many of the large one's do not. By default
            one behind each of the small model's layers but the last, at the same share of the depth of both.
        example_inputs: as `transform` takes them; by default the first batch.
        named_layers: as `transform(layers=…)` takes them, for both.

    Raises:
        EstfxError: no text; stitches that cannot be.
        UnsupportedModelError: a large model whose first layers cannot be passed over; the message says why.

    Source: He et al., Efficient Stitchable Task Adaptation, arXiv 2311.17352; Pan et al., Stitchable Neural Networks,
    arXiv 2302.06586.
    """
    given = list(batches)
    if not given:
        raise EstfxError('a stitch begins by least squares on text: pass batches, such as [{"input_ids": tokens}].')
    inputs = given[0] if example_inputs is None else example_inputs
    one, other = _ends(small, inputs, named_layers), _ends(large, inputs, named_layers)
    places = _default(one, other) if stitches is None else [(int(before), int(passed)) for before, passed in stitches]
    _check(one, other, places)
    with in_mode(small, training=False), in_mode(large, training=False), torch.no_grad():
        stitched = Stitched(one, other, places, (_width(one, given[0]), _width(other, given[0])))
        for number, (before, passed) in enumerate(places):
            tell(f"fitting stitch {number + 1} of {len(places)}")
            own: Any = stitched.own[number]
            _fit(own.map, one, other, before, passed, given)
    return stitched


def _width(ends: Ends, batch: Any) -> int:
    """Of the stream."""
    args, kwargs = _called(ends, batch)
    return int(small_stream(ends, 1, args, kwargs).shape[-1])


def _ends(model: nn.Module, inputs: object, named_layers: LayerPatterns | None) -> Ends:
    with at_rest(model), in_mode(model, training=False):
        decoder = trace(model, inputs, layers=named_layers)
        return Ends(decoder, {name: analysed(traced) for name, traced in decoder.traced.items()})


def _default(small: Ends, large: Ends) -> list[tuple[int, int]]:
    """At the same share of the depth of both, the one with more layers of the small model first."""
    few, many = len(small.order), len(large.order)
    return [(before, min(max(round(before * many / few), 1), many - 1)) for before in range(few - 1, 0, -1)]


def _check(small: Ends, large: Ends, places: Sequence[tuple[int, int]]) -> None:
    if not places:
        raise EstfxError("there is no stitch: both models need two layers at least, or name stitches.")
    for before, passed in places:
        for ends, number, what in ((small, before, "small"), (large, passed, "large")):
            if not 0 < number < len(ends.order):
                raise EstfxError(
                    f"stitch ({before}, {passed}): the {what} model has {len(ends.order)} layers, so that 1 to "
                    f"{len(ends.order) - 1} can come before it."
                )
    for name in small.order:
        if name in small.decoder.left:
            raise UnsupportedModelError(f"layer `{name}` of the small model has no graph: {small.decoder.left[name]}.")
    for name in large.order[: max(passed for _, passed in places)]:
        if name in large.decoder.left:
            raise UnsupportedModelError(f"layer `{name}` of the large model has no graph: {large.decoder.left[name]}.")
        residuals = large.variant(name).residuals
        if not residuals.droppable:
            raise UnsupportedModelError(f"layer `{name}` of the large model cannot be passed over: {residuals.reason}.")


def _called(ends: Ends, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = call_arguments(ends.decoder.model, batch)
    return args, without_cache(ends.decoder.model, kwargs)


def _fit(linear: nn.Linear, small: Ends, large: Ends, before: int, passed: int, batches: Sequence[Any]) -> None:
    """The weights with which the map gives the large model's stream as nearly as can be."""
    gram = products = torch.zeros(())
    for batch in batches:
        x = small_stream(small, before, *_called(small, batch)).flatten(0, -2).double()
        y = small_stream(large, passed, *_called(large, batch)).flatten(0, -2).double()
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        gram, products = gram.to(x) + x.T @ x, products.to(x) + x.T @ y
    damping = DAMPING * gram.diagonal()[:-1].mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damping[-1, -1] = 0.0  # the bias is free
    solved = torch.linalg.solve(gram + damping, products)
    linear.weight.copy_(solved[:-1].T)
    linear.bias.copy_(solved[-1])
