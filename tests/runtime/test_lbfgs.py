"""LBFGS on an evolving model does what it does on the original with masks in its weights; it makes much of rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differences import largest_difference
from masked_decoders import CLOSING, mask_of
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STEPS = 6
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2, heads=0.5, neurons=0.5), Stage(start=4)]
)
LAYERS = [f"transformer.h.{i}" for i in range(4)]


def lbfgs(model: nn.Module, search: str | None) -> torch.optim.LBFGS:
    rate = 0.1 if search is None else 1.0
    return torch.optim.LBFGS(model.parameters(), lr=rate, max_iter=4, history_size=5, line_search_fn=search)


def step_of(optimizer: torch.optim.LBFGS, loss: Callable[[], torch.Tensor]) -> float:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    return optimizer.step(closure).item()  # type: ignore[no-untyped-call]


def ours(dtype: torch.dtype, search: str | None) -> tuple[list[float], nn.Module]:
    model: Any = estfx.transform(build("gpt2", n_layer=4).to(dtype), SCHEDULE, compile=False, verify=False)
    optimizer, losses = lbfgs(model, search), []
    for step in range(STEPS):
        model.set_step(step)
        ids = tokens(seed=step)
        losses.append(step_of(optimizer, lambda ids=ids: model(input_ids=ids, labels=ids).loss))  # type: ignore[misc]
    return losses, model


def masked(dtype: torch.dtype, search: str | None) -> tuple[list[float], nn.Module]:
    """The original model: masks in the closing weights, skipped layers passed over."""
    draws: Any = estfx.transform(build("gpt2", n_layer=4), SCHEDULE, compile=False, verify=False)
    sizes = {axis.role: axis.size for axis in draws.report.layers[0].axes}
    heads, neurons, _ = CLOSING["gpt2"]
    model = build("gpt2", n_layer=4).to(dtype)
    whole = {name: model.get_submodule(name).forward for name in LAYERS}
    optimizer, losses = lbfgs(model, search), []
    for step in range(STEPS):
        draws.set_step(step)
        kept = draws.subnetwork
        masks = {}
        for name in LAYERS:
            runs = kept.layers[name]
            model.get_submodule(name).forward = whole[name] if runs else lambda x, *args, **kwargs: x
            for role, path in (("heads", heads), ("neurons", neurons)) if runs else ():
                key = f"{name}.{path}.weight"
                inputs = model.get_parameter(key).shape[0]
                masks[key] = mask_of(kept.units[name][role], sizes[role], inputs)[:, None].to(dtype)
        ids = tokens(seed=step)

        def loss(ids: torch.Tensor = ids, masks: dict[str, torch.Tensor] = masks) -> torch.Tensor:
            weights = {key: model.get_parameter(key) * mask for key, mask in masks.items()}
            batch = {"input_ids": ids, "labels": ids}
            found: torch.Tensor = torch.func.functional_call(model, weights, kwargs=batch).loss
            return found

        losses.append(step_of(optimizer, loss))
    return losses, model


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")  # LBFGS does
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_does_what_it_does_with_masks(dtype: torch.dtype, search: str | None) -> None:
    (losses, model), (want, original) = ours(dtype, search), masked(dtype, search)
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    print(f"largest difference of weights: {apart:.1e}")
    double = dtype == torch.float64
    assert largest_difference(losses, want) < (1e-6 if double else 1e-3)  # GPT-2's loss is made in float32
    assert apart < (1e-9 if double else 1e-3)
