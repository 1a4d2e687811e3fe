"""Refitting: the closed form is the minimum, ADMM comes to the same, and a cut comes nearer to the whole."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import build, tokens

import estfx
from estfx.cutting.refit_weights import refitted

BATCHES = [{"input_ids": tokens(4, 32, seed=i)} for i in range(4)]


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    return torch.randn(5, 12, dtype=torch.float64), x, torch.tensor([0, 3, 4, 9])


def test_no_other_weights_are_better() -> None:
    weight, x, kept = problem()
    found = refitted(weight, x.T @ x, kept, 0.05).requires_grad_()
    hold = 0.05 * x[:, kept].square().sum(0).mean()
    lost = (found @ x[:, kept].T - weight @ x.T).square().sum() + hold * (found - weight[:, kept]).square().sum()
    (gradient,) = torch.autograd.grad(lost, found)
    assert gradient.abs().max() < 1e-9 * lost
    untouched = (weight[:, kept] @ x[:, kept].T - weight @ x.T).square().sum()
    assert lost < 0.9 * untouched


def test_the_alternating_directions_of_the_paper_come_to_the_same() -> None:
    """ADMM on: minimise ‖Ŵ X − W X‖² + hold ‖(Ŵ − W)_S‖², with all other columns of Ŵ zero."""
    weight, x, kept = problem()
    gram = x.T @ x
    hold = 0.05 * gram[kept][:, kept].diagonal().mean()
    want = refitted(weight, gram, kept, 0.05)
    mask = torch.zeros(12, dtype=torch.float64)
    mask[kept] = 1.0
    quadratic = gram + hold * torch.diag(mask)
    rho = float(gram.diagonal().mean())
    z, u = weight * mask, torch.zeros_like(weight)
    inverse = torch.linalg.inv(quadratic + rho * torch.eye(12, dtype=torch.float64))
    distances = []
    for _ in range(3000):
        w = (weight @ quadratic + rho * (z - u)) @ inverse
        z = (w + u) * mask
        u = u + w - z
        distances.append(float((z[:, kept] - want).norm() / want.norm()))
    assert distances[-1] < 1e-6
    assert distances[30] < distances[0]


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_a_refitted_cut_is_nearer_to_the_whole(name: str) -> None:
    whole = build(name).eval()
    units, layers = estfx.score(whole, "activation", BATCHES).best(heads=0.67, neurons=0.5)
    made = estfx.cut(whole, units, layers=layers)
    ids = tokens(8, 32, seed=9)
    want = whole(ids).logits
    before = (made(ids).logits - want).square().mean()
    names = estfx.reform(made, whole, BATCHES)
    after = (made(ids).logits - want).square().mean()
    assert len(names) == 6
    assert after < 0.85 * before
    assert {made.get_parameter(name).requires_grad for name in names} == {True}


def test_without_text_or_with_another_model_it_is_refused() -> None:
    whole = build("gpt2").eval()
    made = estfx.cut(whole, {"transformer.h.0": {"neurons": [0, 1, 2]}})
    with pytest.raises(estfx.EstfxError, match="reform needs calibration text"):
        estfx.reform(made, whole, [])
    with pytest.raises(estfx.EstfxError, match="it is a number above 0"):
        estfx.reform(made, whole, BATCHES, strength=0)
    with pytest.raises(estfx.EstfxError, match="which this model has not got"):
        estfx.reform(made, build("llama"), BATCHES)
    with pytest.raises(estfx.EstfxError, match="nothing that estfx"):
        estfx.reform(whole, whole, BATCHES)
