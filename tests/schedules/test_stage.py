import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from estfx.errors import ScheduleError
from estfx.schedules.stage import Stage, checked_step, kept_count


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, math.nan, math.inf, True, "0.5", None])
@pytest.mark.parametrize("name", ["heads", "neurons", "layers"])
def test_a_fraction_lies_above_0_and_up_to_1(name, fraction):
    with pytest.raises(ScheduleError, match=name):
        Stage(start=0, **{name: fraction})


@pytest.mark.parametrize("start", [-1, 1.0, True, "0", None])
def test_a_start_is_a_step(start):
    with pytest.raises(ScheduleError, match="start"):
        Stage(start=start)


@pytest.mark.parametrize("step", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_step_may_be_any_whole_number(step):
    assert checked_step(step) == 3
    assert type(checked_step(step)) is int


@pytest.mark.parametrize(
    ("size", "fraction", "multiple_of", "kept"),
    [
        (12, 0.5, 1, 6),
        (5, 0.5, 1, 3),  # half up
        (3, 0.5, 1, 2),
        (50, 0.29, 1, 15),  # 14.5 in decimals, although 14.499… in floats
        (7, 0.01, 1, 1),
        (100, 0.5, 8, 48),  # 50 lies nearer to 48 than to 56
        (100, 0.52, 8, 56),  # half up
        (100, 0.01, 8, 8),
        (4, 0.5, 8, 4),
        (100, 1, 8, 100),
        (10, 0.99, 4, 8),
        (11, 0.99, 4, 11),
    ],
)
def test_kept_count(size, fraction, multiple_of, kept):
    assert kept_count(size, fraction, multiple_of) == kept


@given(st.integers(1, 10_000), st.floats(1e-6, 1), st.integers(1, 256))
def test_kept_count_is_the_nearest_multiple_within_bounds(size, fraction, multiple_of):
    kept = kept_count(size, fraction, multiple_of)
    assert 1 <= kept <= size
    if fraction == 1:
        assert kept == size
    elif multiple_of < kept < size:
        assert kept % multiple_of == 0
        assert abs(kept - fraction * size) <= multiple_of / 2 + 1e-6


@pytest.mark.parametrize("arguments", [(0, 0.5), (5, 0.0), (5, 1.5), (5, 0.5, 0)])
def test_kept_count_refuses_what_cannot_be(arguments):
    with pytest.raises(ScheduleError, match="cannot keep"):
        kept_count(*arguments)
