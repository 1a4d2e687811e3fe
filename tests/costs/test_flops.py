"""What is counted of a pass on meta tensors: bytes that are kept, and products that torch itself does not know."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from estfx.costs.flops import _cost, _Saved, flop_counter


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_a_storage_counts_once_and_that_of_a_weight_not_at_all() -> None:
    weight, kept, other = on_meta(4, 4), on_meta(8), on_meta(3)
    saved = _Saved([weight])
    for tensor in (kept, kept[:2], kept.view(2, 4), weight, weight.t(), other, kept):
        assert saved.pack(tensor) is tensor
    assert sum(saved.bytes.values()) == 4 * (8 + 3)


def test_what_is_read_twice_in_the_backward_pass_is_kept_once() -> None:
    x, weight = on_meta(5, 8).requires_grad_(), on_meta(8, 8).requires_grad_()
    cost = _cost(lambda: F.linear(x, weight) * F.linear(x, weight.t()), {"weight": weight})
    assert cost.activation_bytes == 4 * (5 * 8) * 3  # the input once, and both factors
    assert (cost.flops_forward, cost.flops_backward) == (2 * 2 * 5 * 8 * 8, 4 * 2 * 5 * 8 * 8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_each_gradient_of_a_convolution_costs_what_its_forward_pass_does(groups: int, bias: bool) -> None:
    weight, added = on_meta(12, 6 // groups, 4).requires_grad_(), on_meta(12).requires_grad_() if bias else None
    forward = 2 * (2 * 12 * 7) * (6 // groups * 4)
    for needs_grad, passes in ((True, 3), (False, 2)):
        x = on_meta(2, 6, 10).requires_grad_(needs_grad)
        with flop_counter() as counter:
            F.conv1d(x, weight, added, groups=groups).sum().backward()
        assert counter.get_total_flops() == passes * forward
