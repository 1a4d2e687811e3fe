from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from estfx.graphs.autocast import autocast_state
from estfx.tracing.call_signature import Signature, call_key, constant_key, flatten, is_plain, signature_of
from estfx.tracing.layer_structure import Changes


def signature(*args: Any, weights: tuple[torch.dtype, ...] = (), **kwargs: Any) -> Signature:
    leaves, spec = flatten(args, kwargs)
    return signature_of(leaves, spec, "cpu", weights)


def test_the_same_call_has_the_same_signature() -> None:
    one, other = (signature(torch.randn(2, 3), mask=None, scale=0.5, flag=True) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


sizes = st.lists(st.integers(2, 9), min_size=1, max_size=4)


@given(sizes, st.data())
def test_sizes_do_not_matter_but_which_are_one(shape: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(2, 9), min_size=len(shape), max_size=len(shape)))
    assert signature(torch.empty(shape)) == signature(torch.empty(other))
    at = data.draw(st.integers(0, len(shape) - 1))
    other[at] = 1
    assert signature(torch.empty(shape)) != signature(torch.empty(other))


X = torch.randn(2, 3)
DIFFERENT: dict[str, tuple[Signature, Signature]] = {
    "rank": (signature(X), signature(X[None])),
    "dtype": (signature(X), signature(X.double())),
    "device": (signature(X), signature(X.to("meta"))),
    "a tensor or None": (signature(X, mask=X), signature(X, mask=None)),
    "position or keyword": (signature(X, X), signature(X, y=X)),
    "one more": (signature(X), signature(X, None)),
    "structure": (signature((X, X)), signature([X, X])),
    "names": (signature(a=X), signature(b=X)),
    "a constant": (signature(X, 0.5), signature(X, 0.25)),
    "true or one": (signature(X, True), signature(X, 1)),
    "one or 1.0": (signature(X, 1), signature(X, 1.0)),
    "text": (signature(X, "a"), signature(X, "b")),
    "a dtype": (signature(X, torch.float32), signature(X, torch.float64)),
    "dtypes of weights": (signature(X, weights=(torch.float32,)), signature(X, weights=(torch.bfloat16,))),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_makes_another_signature(what: str) -> None:
    one, other = DIFFERENT[what]
    assert one != other


def test_autocast_makes_another_signature() -> None:
    plain = signature(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = signature(X)
        with torch.autocast("cpu", enabled=False):
            assert signature(X) == plain
    with torch.autocast("cpu", dtype=torch.float16):
        assert len({plain, half, signature(X)}) == 3


def key(*args: Any, weights: tuple[torch.dtype, ...] = (), structure: Changes = frozenset()) -> Any:
    leaves, spec = flatten(args, {})
    return call_key(leaves, spec, "cpu", weights, structure)


CHANGED: Changes = frozenset({("new", ("", "scale", ("int", 2)))})
KEYS: dict[str, tuple[Any, Any]] = {
    "rank": (key(X), key(X[None])),
    "a size": (key(X), key(X[:1])),
    "dtype": (key(X), key(X.double())),
    "device": (key(X), key(X.to("meta"))),
    "structure of the arguments": (key(X, X), key((X, X))),
    "a constant": (key(X, 0.5), key(X, 0.25)),
    "true or one": (key(X, True), key(X, 1)),
    "one or 1.0": (key(X, 1), key(X, 1.0)),
    "none": (key(X, None), key(X, False)),
    "dtypes of weights": (key(X, weights=(torch.float32,)), key(X, weights=(torch.bfloat16,))),
    "what was changed": (key(X), key(X, structure=CHANGED)),
}


@pytest.mark.parametrize("what", KEYS)
def test_what_makes_another_key_of_a_call(what: str) -> None:
    one, other = KEYS[what]
    assert one != other


def test_the_key_of_a_call_knows_autocast_and_no_values() -> None:
    assert key(X, 1, "a") == key(X * 2, 1, "a")
    assert key(X, object()) is None
    plain = key(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = key(X)
    with torch.autocast("cpu", dtype=torch.float16):
        assert len({plain, half, key(X)}) == 3


def test_values_of_tensors_do_not_matter() -> None:
    assert signature(X) == signature(X * 2)
    assert signature(X) == signature(X.clone().requires_grad_())


def test_an_object_counts_by_identity() -> None:
    one, other = object(), object()
    assert constant_key(one) == constant_key(one)
    assert constant_key(one) != constant_key(other)


@pytest.mark.parametrize(
    ("leaf", "plain"),
    [
        (X, True),
        (None, True),
        (True, True),
        (3, True),
        (0.5, True),
        ("text", True),
        (torch.float32, True),
        (torch.device("cpu"), True),
        (object(), False),
        ({1}, False),
    ],
)
def test_what_is_plain(leaf: object, plain: bool) -> None:
    assert is_plain(leaf) == plain


def test_it_prints_for_a_log() -> None:
    assert str(signature(X, X, mask=None, scale=0.5)) == "2 tensors, 2 constants, autocast off"


def test_there_is_no_autocast_on_the_meta_device() -> None:
    assert autocast_state("meta") == "off"
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_state("meta") == "off"
        assert autocast_state("cpu") == ("cpu", torch.bfloat16)
