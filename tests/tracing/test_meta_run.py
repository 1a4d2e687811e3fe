"""Numbers on the meta device."""

from __future__ import annotations

import pytest
import torch

from estfx.tracing.meta_run import NumbersHaveValues

META = torch.device("meta")


def test_what_comes_from_sizes_and_constants_has_a_value() -> None:
    with NumbersHaveValues():
        positions = torch.arange(5, device=META)[None]
        assert bool((positions.diff(dim=-1) == 1).all())
        assert torch.ones(2, 3, device=META).long().cumsum(-1)[1, 2].item() == 3
        assert torch.zeros(3, device=META).sum().item() == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: weight.sum(),
        lambda weight: (torch.ones(3, device=META) * weight).sum(),
        lambda weight: torch.empty(3, device=META).sum(),
        lambda weight: torch.rand(3, device=META).sum(),
    ],
)
def test_what_depends_on_a_weight_or_on_chance_has_none(make) -> None:  # type: ignore[no-untyped-def]
    with NumbersHaveValues(), pytest.raises(RuntimeError, match="meta tensors"):
        make(torch.empty(3, device=META)).item()


def test_tensors_on_the_cpu_are_left_alone() -> None:
    with NumbersHaveValues():
        assert torch.arange(4).sum().item() == 6
