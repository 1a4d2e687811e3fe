import pytest
import torch
from brute_force import Row, check, rules_of

from estfx.axes.rules import factories
from estfx.axes.walk import FACTORIES

aten = torch.ops.aten

ROWS = [
    Row(aten.arange.default, lambda: aten.arange.default(7), [], " -> a"),
    Row(aten.arange.start, lambda: aten.arange.start(2, 7), [], " -> a"),
    Row(aten.arange.start_step, lambda: aten.arange.start_step(1, 8, 2), [], " -> a"),
    Row(aten.linspace.default, lambda: aten.linspace.default(0, 1, 5), [], " -> a"),
    Row(aten.full.default, lambda: aten.full.default([3, 5], 2.0), [], " -> a b"),
    Row(aten.zeros.default, lambda: aten.zeros.default([3, 1]), [], " -> a 1"),
    Row(aten.ones.default, lambda: aten.ones.default([3, 5]), [], " -> a b"),
    Row(aten.empty.memory_format, lambda: aten.empty.memory_format([3, 5]), [], " -> a b", "shape"),
    Row(aten.scalar_tensor.default, lambda: aten.scalar_tensor.default(2.0), [], " -> ()"),
    Row(aten.new_zeros.default, lambda x: aten.new_zeros.default(x, [3, 5]), [(3, 5)], "a b -> c d"),
    Row(aten.new_ones.default, lambda x: aten.new_ones.default(x, [3]), [(3, 5)], "a b -> c"),
    Row(aten.new_full.default, lambda x: aten.new_full.default(x, [5], 2.0), [(3, 5)], "a b -> c"),
    Row(aten.new_empty.default, lambda x: aten.new_empty.default(x, [5]), [(3, 5)], "a b -> c", "shape"),
    Row(aten.eye.default, lambda: aten.eye.default(5), [], " -> a b"),
    Row(aten.rand.default, lambda: aten.rand.default([3, 5]), [], " -> a b"),
    Row(aten.randn.default, lambda: aten.randn.default([3, 5]), [], " -> a b"),
    # born, and then one with an axis of an input
    Row(
        aten.arange.default,
        lambda x: aten.mul.Tensor(x, aten.unsqueeze.default(aten.arange.default(3), 1)),
        [(3, 5)],
        "a b -> a b",
    ),
    Row(aten.tril.default, aten.tril.default, [(2, 3, 5)], "a !b !c -> a !b !c"),
    Row(aten.triu.default, lambda x: aten.triu.default(x, 1), [(3, 5)], "!a !b -> !a !b"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(factories) == {row.op for row in ROWS}
    assert rules_of(factories) >= FACTORIES
