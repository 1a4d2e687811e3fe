"""How rules of users' own get into the tables, and what they are told when one is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hand_written import Layer, graph_of_function
from torch.nn import functional as F

from estfx.axes import resizer, rule
from estfx.axes.walk import RESIZERS, RULES
from estfx.errors import EstfxError
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.passes import analysis


@torch.library.custom_op("registration::scaled", mutates_args=())
def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("registration::both", mutates_args=())
def both(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 2, x * 3]


scaled.register_fake(torch.empty_like)
both.register_fake(lambda x: [torch.empty_like(x), torch.empty_like(x)])
for operator in (scaled, both):  # their gradients are not the point
    operator.register_autograd(lambda ctx, grad: grad if isinstance(grad, torch.Tensor) else grad[0])
SCALED, BOTH = torch.ops.registration.scaled.default, torch.ops.registration.both.default


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    before = dict(RULES), dict(RESIZERS)
    yield
    for table, entries in zip((RULES, RESIZERS), before, strict=True):
        table.clear()
        table.update(entries)


def same(walk: Any, node: Any, a: Any) -> Any:
    return walk.of(a["x"])


def found(function: Any) -> tags.Axes:
    gm = run_passes(graph_of_function(function), analysis()[:3])
    return tags.get(gm, tags.Axes)


def uses_scaled(m: Layer, x: torch.Tensor) -> torch.Tensor:
    return x + m.g(torch.ops.registration.scaled(F.relu(m.f(x))))


def uses_both(m: Layer, x: torch.Tensor) -> torch.Tensor:
    return x + m.g(torch.ops.registration.both(m.f(x))[1])


def obstacle(axes: tags.Axes) -> str:
    (axis,) = axes.dims["linear"][-1].axes()
    return axes.obstacle(axis)


def test_a_rule_of_a_users_own_is_used() -> None:
    assert obstacle(found(uses_scaled)).startswith("no rule for the operator at scaled")
    assert rule(SCALED)(same) is same
    assert obstacle(found(uses_scaled)) == ""


def test_one_function_may_be_the_rule_of_several_operators() -> None:
    rule(BOTH, SCALED)(lambda walk, node, a: [same(walk, node, a)] * 2 if node.target is BOTH else same(walk, node, a))
    assert obstacle(found(uses_both)) == obstacle(found(uses_scaled)) == ""


@pytest.mark.parametrize(("register", "what"), [(rule, "rule"), (resizer, "resizer")])
def test_refusal_of_a_second_one_for_an_operator(register: Any, what: str) -> None:
    register(SCALED)(same)
    with pytest.raises(EstfxError) as caught:
        register(BOTH, SCALED)(lambda walk, node, a: {})
    assert str(caught.value) == (
        f"registration.scaled.default has a {what} already: `same` of {__name__}. To put another in its place "
        f"on purpose, register it with @{what}(torch.ops.registration.scaled.default, replace=True)."
    )
    table = RULES if what == "rule" else RESIZERS
    assert table[SCALED] is same
    assert BOTH not in table  # nothing of what is refused is registered


NAME = "registration::scaled"


def test_a_rule_by_the_name_of_an_operator_is_used() -> None:
    rule(NAME)(same)
    assert obstacle(found(uses_scaled)) == ""


@pytest.mark.parametrize(("first", "second"), [(SCALED, NAME), (NAME, SCALED), (NAME, NAME)])
def test_a_name_and_an_overload_are_one_operator(first: Any, second: Any) -> None:
    rule(first)(same)
    with pytest.raises(EstfxError, match="has a rule already: `same`"):
        rule(second)(lambda walk, node, a: None)
    replaced = rule(second, replace=True)(lambda walk, node, a: walk.pin_all(node, "another reason"))
    assert obstacle(found(uses_scaled)) == "another reason"
    assert [each for each in RULES.values() if each in (same, replaced)] == [replaced]


def test_a_rule_of_estfx_is_said_to_be_its() -> None:
    with pytest.raises(
        EstfxError, match=r"aten\.roll\.default has a rule already: `\w+` of estfx\.axes\.rules\.shapes\."
    ):
        rule(torch.ops.aten.roll.default)(same)


def test_a_rule_is_replaced_on_purpose() -> None:
    rule(SCALED)(same)

    @rule(SCALED, replace=True)
    def other(walk: Any, node: Any, a: Any) -> Any:
        walk.pin("another reason", *walk.of(a["x"]))
        return walk.of(a["x"])

    assert RULES[SCALED] is other
    assert obstacle(found(uses_scaled)) == "another reason"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"a rule is of an operator: name it"),
        (
            (torch.ops.registration.scaled,),
            r"these: default\. Name .* such as torch\.ops\.registration\.scaled\.default\.",
        ),
        ((scaled,), r"not of the function that .*: write torch\.ops\.registration\.scaled\.default\."),
        ((same,), r"`same` is of the type function"),
        (
            ("registration.scaled",),
            r"'registration\.scaled' is no name of an operator's overload; .* 'example::swiglu'",
        ),
    ],
)
def test_refusal_of_what_is_no_overload(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(EstfxError, match=message):
        rule(*given)


@pytest.mark.parametrize(
    ("gives", "shown"),
    [
        (lambda dims, walk: dims[:-1], r"dimensions of the sizes \[3, 17\]"),
        (lambda dims, walk: (*dims[:-1], walk.fresh(7)), r"dimensions of the sizes \[3, 17, 7\]"),
        (lambda dims, walk: [dims, dims], r"\[\(.*\)\]"),
        (lambda dims, walk: (*dims[:-1], 10**9), r"\(\d+, \d+, 1000000000\)"),
        (lambda dims, walk: None, "None"),
    ],
)
def test_refusal_of_other_dimensions_than_the_operator_has(gives: Any, shown: str) -> None:
    @rule(SCALED)
    def wrong(walk: Any, node: Any, a: Any) -> Any:
        return gives(walk.of(a["x"]), walk)

    with pytest.raises(EstfxError) as caught:
        found(uses_scaled)
    assert re.match(
        rf"the rule for registration\.scaled\.default, `wrong` of {re.escape(__name__)}, gives {shown} at "
        r"scaled = registration\.scaled\.default \(hand_written\.py:\d+\); the operator gives \[3, 17, 40\]\. "
        r"A rule returns a tuple with a dimension for each",
        str(caught.value),
    )
    assert any("in pass find-axes" in note for note in caught.value.__notes__)


def test_refusal_of_too_few_tensors() -> None:
    rule(BOTH)(lambda walk, node, a: [walk.of(a["x"])])
    with pytest.raises(EstfxError, match=r"operator gives \[3, 17, 40\] and \[3, 17, 40\]\. A rule returns a list"):
        found(uses_both)


def test_what_a_rule_raises_is_told_with_its_place() -> None:
    rule(SCALED)(lambda walk, node, a: walk.of(a["input"]))
    with pytest.raises(KeyError, match="input") as caught:
        found(uses_scaled)
    assert caught.value.__notes__[0].startswith(f"in the rule `<lambda>` of {__name__} for scaled = ")
