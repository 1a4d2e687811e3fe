"""Scores a model's units and layers, by its weights alone or by what calibration text does to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from estfx.errors import EstfxError
from estfx.programs import Variant, analysed, resolve
from estfx.runtime import Sums, unit_positions, unit_weights
from estfx.scoring.closing_inputs import ClosingInputs, closing_inputs
from estfx.scoring.layer_forwards import LayerForward, layer_forwards, passing
from estfx.scoring.scores import Scores
from estfx.tracing import (
    ATTRIBUTE,
    Decoder,
    LayerPatterns,
    at_rest,
    call_arguments,
    flatten,
    in_mode,
    trace,
    without_cache,
)
from estfx.waiting import tell, working

__all__ = ["loss_gradients", "loss_of", "score"]

By = Literal["magnitude", "gradient", "fisher", "activation"]
LayersBy = Literal["influence", "loss"]
DAMPING = 0.01  # of a Gram matrix, relative to the mean of its diagonal


@working("looking for the layers")
def score(
    model: nn.Module,
    by: By = "magnitude",
    batches: Iterable[Any] = (),
    *,
    layers_by: LayersBy | None = None,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
) -> Scores:
    """How much each unit and each layer matters. The model is not changed.

    Args:
        model: any decoder, transformed or not.
        by: of units. `"magnitude"`: the sum of |weight|, which needs no text. `"gradient"`: that of |weight · gradient|
            of the loss over all batches, as the selection policy `weighted_gradient_magnitude` ranks units (first
            order). `"fisher"`: the square of Σ weight · gradient, batch by batch, so that batches of one text each are
            best. `"activation"`: how far the layer's result moves without the unit, when the others make up for it as
            well as they can: weight² over the diagonal of the inverse Gram matrix of its inputs (Optimal Brain
            Surgeon).
        batches: calibration text, as the model's forward takes it: dictionaries of keyword arguments, or tuples. For a
            loss, `labels` are the `input_ids` where a transformers model is given none.
        layers_by: `"influence"`: how far a layer turns its stream, 1 minus the mean cosine of what goes in and what
            comes out (block influence). `"loss"`: by how much the loss rises when it is skipped, which takes a pass for
            each layer. By default influence, where there are batches.
        example_inputs: as `transform` takes them; by default the first batch.
        named_layers: as `transform(layers=…)` takes them.

    Raises:
        EstfxError: scores that need text, and none is given; a loss that the model does not return.

    Source: Hassibi and Stork 1993 (Optimal Brain Surgeon); Men et al., arXiv 2403.03853 (block influence).
    """
    if by not in get_args(By):
        raise EstfxError(f"by={by!r}: units are scored by {', '.join(get_args(By))}.")
    if layers_by is not None and layers_by not in get_args(LayersBy):
        raise EstfxError(f"layers_by={layers_by!r}: layers are scored by {', '.join(get_args(LayersBy))}.")
    given = list(batches)
    if not given and (by != "magnitude" or layers_by is not None):
        raise EstfxError(
            f"scores by {by if by != 'magnitude' else layers_by} need calibration text: pass batches, such as "
            '[{"input_ids": tokens}]. By magnitude units need none.'
        )
    layers_by = layers_by or ("influence" if given else None)
    runtime = vars(model).get(ATTRIBUTE)
    named_layers = runtime.named if named_layers is None and runtime is not None else named_layers
    with at_rest(model), in_mode(model, training=False):
        decoder = trace(model, given[0] if given and example_inputs is None else example_inputs, layers=named_layers)
        variants = {name: analysed(traced, scales=False) for name, traced in decoder.traced.items()}
        tell(f"scoring units by {by}")
        units = _units(decoder, variants, by, given)
        layers: dict[str, float] = {}
        if layers_by is not None:
            tell(f"scoring layers by {layers_by}")
            may_go = [n for n, info in decoder.infos.items() if variants[info.program].residuals.droppable]
            scored = _influence if layers_by == "influence" else _loss_without
            layers = scored(decoder, variants, may_go, given)
    return Scores(by, units, layers, decoder.order, sum(map(_tokens, given)))


def _units(
    decoder: Decoder, variants: Mapping[str, Variant], by: By, batches: Sequence[Any]
) -> dict[str, dict[str, torch.Tensor]]:
    if by == "activation":
        return _by_activation(decoder, variants, batches)
    if by == "magnitude":
        return _summed(decoder, variants, {})
    gradients: dict[int, torch.Tensor] = {}
    squares: dict[str, dict[str, torch.Tensor]] = {}
    for number, batch in enumerate(batches, start=1):
        tell(f"scoring units by {by}: batch {number} of {len(batches)}")
        own = loss_gradients(decoder.model, batch)
        if by == "gradient":
            for key, gradient in own.items():
                gradients[key] = gradients[key] + gradient if key in gradients else gradient
            continue
        for name, roles in _summed(decoder, variants, own, signed=True).items():
            for role, values in roles.items():
                before = squares.setdefault(name, {}).get(role, torch.zeros_like(values))
                squares[name][role] = before + values**2
    return squares if by == "fisher" else _summed(decoder, variants, gradients)


def _summed(
    decoder: Decoder, variants: Mapping[str, Variant], gradients: Mapping[int, torch.Tensor], signed: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """Sums over the weights of each unit: of |weight|, or of weight · gradient, or its magnitude."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, info in decoder.infos.items():
        variant, module = variants[info.program], info.call.module
        sizes = {(name, role.name): role.axis.size for role in variant.roles.found}
        sums = Sums(sizes, torch.device("cpu"), signed=signed)
        with torch.no_grad():
            for weight in unit_weights(variant):
                tensor = resolve(module, weight.path)
                if not gradients:
                    sums.add((name, weight.role), weight, tensor.detach())
                elif id(tensor) in gradients:
                    sums.add((name, weight.role), weight, tensor.detach(), gradients[id(tensor)])
        if sizes:
            parts = sums.total().split(list(sizes.values()))
            found[name] = {role: part.clone() for (_, role), part in zip(sizes, parts, strict=True)}
    return found


# -- by gradients --------------------------------------------------------------------------------------------------


def loss_gradients(model: nn.Module, batch: Any) -> dict[int, torch.Tensor]:
    """The gradient of a batch's loss, by the identity of each parameter."""
    learnt = [p for p in model.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in learnt]
    try:
        for parameter in learnt:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            found = torch.autograd.grad(loss_of(model, batch), learnt, allow_unused=True)
    finally:
        for parameter, flag in zip(learnt, flags, strict=True):
            parameter.requires_grad_(flag)
    return {id(p): g for p, g in zip(learnt, found, strict=True) if g is not None}


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that a model returns for a batch. Raises EstfxError if it returns none."""
    args, kwargs = call_arguments(model, batch)
    kwargs = without_cache(model, kwargs)
    if "labels" not in kwargs and "input_ids" in kwargs and hasattr(model, "loss_function"):
        kwargs["labels"] = kwargs["input_ids"]
    result = model(*args, **kwargs)
    loss = getattr(result, "loss", None)
    candidates = [loss, *(result if isinstance(result, (tuple, list)) else (result,))]
    for each in candidates:
        if isinstance(each, torch.Tensor) and each.numel() == 1 and each.is_floating_point():
            return each.reshape(())
    raise EstfxError(
        f"`{type(model).__name__}` returns no loss for this batch: no `loss`, and no tensor with one number. Give it "
        "what it needs for one, such as labels."
    )


# -- by activations ------------------------------------------------------------------------------------------------


def _by_activation(
    decoder: Decoder, variants: Mapping[str, Variant], batches: Sequence[Any]
) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for inputs in closing_inputs(decoder, variants, batches):
        info = decoder.infos[inputs.layer]
        variant = variants[info.program]
        each_input = _without_one(inputs, info.call.module, variant)
        for role in variant.roles.found:
            if role.axis in inputs.dim.axes():
                own = each_input[unit_positions(inputs.dim, role.axis)].sum(dim=1)
                roles = found.setdefault(inputs.layer, {})
                roles[role.name] = roles.get(role.name, torch.zeros_like(own)) + own
    return found


def _without_one(inputs: ClosingInputs, layer: nn.Module, variant: Variant) -> torch.Tensor:
    """By how much, squared and summed over all tokens, a result moves without each of the inputs, on the CPU."""
    gram = inputs.gram.double()
    damped = gram + torch.eye(len(gram), device=gram.device) * (DAMPING * gram.diagonal().mean()).clamp(min=1e-12)
    alone: torch.Tensor = 1 / torch.linalg.inv(damped).diagonal()
    if inputs.weight is None:
        return alone.float().cpu()
    weight = resolve(layer, inputs.weight).detach().double()
    squared: torch.Tensor = weight.movedim(inputs.weight_dim, 0).flatten(1).square().sum(dim=1)
    return (squared * alone).float().cpu()


# -- layers --------------------------------------------------------------------------------------------------------


def _influence(
    decoder: Decoder, variants: Mapping[str, Variant], names: Sequence[str], batches: Sequence[Any]
) -> dict[str, float]:
    turned = dict.fromkeys(names, 0.0)
    tokens = dict.fromkeys(names, 0)

    def watching(name: str) -> LayerForward:
        info = decoder.infos[name]
        forward = info.call.module.forward
        stream_output = info.call.stream_output

        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before = flatten(args, kwargs)[0][info.call.stream_leaf].detach().clone()
            result = forward(*args, **kwargs)
            after = torch.utils._pytree.tree_leaves(result)[stream_output].detach()
            if variants[info.program].residuals.outside:
                after = before + after
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            turned[name] += float((1 - cosine).sum())
            tokens[name] += cosine.numel()
            return result

        return watch

    with layer_forwards(decoder, {name: watching(name) for name in names}), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            tell(f"scoring layers by influence: batch {number} of {len(batches)}")
            args, kwargs = call_arguments(decoder.model, batch)
            decoder.model(*args, **without_cache(decoder.model, kwargs))
    return {name: turned[name] / max(tokens[name], 1) for name in names}


def _loss_without(
    decoder: Decoder, variants: Mapping[str, Variant], names: Sequence[str], batches: Sequence[Any]
) -> dict[str, float]:
    def mean_loss() -> float:
        with torch.no_grad():
            return sum(float(loss_of(decoder.model, batch)) for batch in batches) / len(batches)

    whole = mean_loss()
    found = {}
    for number, name in enumerate(names, start=1):
        tell(f"skipping layer {number} of {len(names)}")
        with layer_forwards(decoder, {name: passing(variants[decoder.infos[name].program])}):
            found[name] = mean_loss() - whole
    return found


# -- what goes in --------------------------------------------------------------------------------------------------


def _tokens(batch: Any) -> int:
    leaves = torch.utils._pytree.tree_leaves(batch)
    return next((x.numel() for x in leaves if isinstance(x, torch.Tensor) and not x.is_floating_point()), 0)
