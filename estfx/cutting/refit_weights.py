"""Refits the weights that close over kept units, so that a cut layer gives what the whole one gave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from estfx.cutting.cut_task import CutTask
from estfx.cutting.kept_parts import kept_parts
from estfx.cutting.make_cut import cut_record
from estfx.errors import EstfxError
from estfx.programs import analysed, resolve
from estfx.scoring import closing_inputs
from estfx.tracing import LayerPatterns, at_rest, in_mode, trace
from estfx.waiting import tell, working

__all__ = ["refitted", "reform"]

STRENGTH = 0.01


@working("looking for the layers")
def reform(
    made: nn.Module,
    whole: nn.Module,
    batches: Iterable[Any],
    *,
    strength: float = STRENGTH,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
) -> list[str]:
    """Refits a cut in place: the kept columns of its closing weights make up for those that are gone.

    For each contraction over units, with activations X of the whole model and the kept ones X_S:
    minimise ‖Ŵ X_S − W X‖² + λ ‖Ŵ − W_S‖² over all tokens, which is Ŵ = (W G[:, S] + λ W_S)(G[S, S] + λ I)⁻¹ with
    G = X Xᵀ, and λ = `strength` times the mean of its diagonal. One solve for each; no gradients.

    Args:
        made: what `estfx.cut` returned for `whole`.
        whole: the model that it was cut out of, with the weights that it had then.
        batches: calibration text, as the model's forward takes it.
        strength: how strongly the weights are held where they are.
        example_inputs: as `transform` takes them; by default the first batch.
        named_layers: as `transform(layers=…)` takes them.

    Returns:
        The names in the cut of the weights that were refitted. Weights of more than two dimensions, as those of
        experts, stay as they are: each expert sees other tokens.

    Raises:
        EstfxError: no batch, or a cut of another model.
    """
    record = cut_record(made)
    given = list(batches)
    if not given:
        raise EstfxError("reform needs calibration text: pass batches, such as [{'input_ids': tokens}].")
    if not strength > 0:
        raise EstfxError(f"strength={strength}: it is a number above 0, such as {STRENGTH}.")
    with at_rest(whole), in_mode(whole, training=False):
        decoder = trace(whole, given[0] if example_inputs is None else example_inputs, layers=named_layers)
        variants = {name: analysed(traced, scales=False) for name, traced in decoder.traced.items()}
        task = CutTask(decoder, variants, kept_parts(decoder, variants, record.units, record.layers))
        tell("running the calibration text")
        found = closing_inputs(decoder, variants, given)
    names = []
    for inputs in found:
        part = task.parts.get(inputs.layer)
        kept = part.weights.get(inputs.weight or "", {}).get(inputs.weight_dim) if part is not None else None
        if part is None or kept is None or inputs.weight is None:
            continue
        tell(f"refitting {inputs.layer}.{inputs.weight}")
        target = resolve(made.get_submodule(task.path_in_cut(part)), inputs.weight)
        weight = resolve(part.call.module, inputs.weight).detach().movedim(inputs.weight_dim, -1)
        new = refitted(weight.double(), inputs.gram.double(), torch.from_numpy(kept).to(weight.device), strength)
        if target.movedim(inputs.weight_dim, -1).shape != new.shape:
            raise EstfxError(
                f"`{inputs.layer}.{inputs.weight}` has another shape in this cut than one of this model would have: it "
                "was cut out of another one, or changed since."
            )
        with torch.no_grad():
            target.movedim(inputs.weight_dim, -1).copy_(new)
        names.append(f"{task.path_in_cut(part)}.{inputs.weight}")
    return names


def refitted(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor, strength: float) -> torch.Tensor:
    """`[out, kept]`, from a weight `[out, in]` and the Gram matrix `[in, in]` of its inputs."""
    own = gram[kept][:, kept]
    hold = strength * own.diagonal().mean().clamp(min=1e-12)
    wanted = weight @ gram[:, kept] + hold * weight[:, kept]
    damped = own + hold * torch.eye(len(kept), device=own.device, dtype=own.dtype)
    found: torch.Tensor = torch.linalg.solve(damped, wanted, left=False)
    return found
