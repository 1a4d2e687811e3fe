"""Taking units, and its gradient."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from estfx.graphs.gather import take


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_take_is_index_select_with_the_gradient_of_indexing(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    kept = data.draw(st.lists(st.integers(0, shape[dim] - 1), min_size=1, unique=True))
    index = torch.tensor(sorted(kept))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(take(x, dim, index).shape, dtype=torch.float64)
    (take(x, dim, index) * weight).sum().backward()
    (y.movedim(dim, 0)[index].movedim(0, dim) * weight).sum().backward()
    assert torch.equal(take(x, dim, index), x.index_select(dim, index))
    assert torch.equal(x.grad, y.grad)
