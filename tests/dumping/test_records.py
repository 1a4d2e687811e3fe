"""What stands in a dump for values that JSON has not, and what is read of it again."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from estfx.dumping.constants import packed, unpacked
from estfx.dumping.loading import _decoded
from estfx.dumping.records import _encoded


def read_again(value: Any) -> Any:
    return _decoded(json.loads(json.dumps(_encoded(value), allow_nan=False)), {}, ())


@pytest.mark.parametrize(
    "value",
    [
        (1, [2.5, None], "text", (True,)),
        [-math.inf, math.inf, 0.1],
        {1: (2, 3), "a": []},
        slice(1, None, 2),
        torch.bfloat16,
        torch.channels_last,
        torch.strided,
        torch.device("meta"),
    ],
    ids=str,
)
def test_values_come_back_as_they_were(value: Any) -> None:
    again = read_again(value)
    assert again == value
    assert repr(again) == repr(value)  # a tuple is no list, and True not 1


def test_so_does_what_is_no_number() -> None:
    assert math.isnan(read_again(math.nan))


@pytest.mark.parametrize("shape", [(2, 3), (3, 0), (), (2, 3, 4)])
def test_so_do_constants_of_any_layout(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    for each in (tensor, tensor.mT if tensor.ndim > 1 else tensor, tensor.to(torch.int8), tensor > 0):
        dtype = str(each.dtype).removeprefix("torch.")
        assert torch.equal(unpacked(packed(each), dtype, list(each.shape)), each)
