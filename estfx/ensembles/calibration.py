"""How far a model's probabilities are from how often it is right."""

from __future__ import annotations

import torch

from estfx.errors import EstfxError

__all__ = ["calibration_error"]


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """The expected calibration error: how far confidence and accuracy are apart, in bins of equal width of confidence.

    Args:
        logits: `[..., tokens]`.
        labels: `[...]`, the right tokens, already shifted; negative ones are left out.
        bins: of the largest probability, from 0 to 1.

    Raises EstfxError for other shapes, or if no label is left.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    if logits.shape[:-1] != labels.shape:
        raise EstfxError(
            f"the labels are {list(labels.shape)}, and the logits {list(logits.shape)}: labels have "
            "one number for each position. Shift them first: logits[:, :-1], labels[:, 1:]."
        )
    if bins < 1:
        raise EstfxError(f"bins={bins}: at least one bin is needed.")
    counted = labels >= 0
    if not counted.any():
        raise EstfxError("no label is left: all are negative, which says that they do not count.")
    confidence, guess = logits.detach()[counted].double().softmax(-1).max(-1)
    right = (guess == labels[counted]).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    total = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    apart = total.index_add(0, number, confidence - right)
    return float(apart.abs().sum() / counted.sum())
