import pytest
import torch
from brute_force import Row, check, reasons, rules_of

from estfx.axes.rules import convolutions
from estfx.axes.walk import RESIZERS

aten = torch.ops.aten
CONV1D, CONV2D = aten.conv1d.default, aten.conv2d.default
SAME1D, SAME2D = aten.conv1d.padding, aten.conv2d.padding


def convolution(op, groups, how, bias=True):
    """`how` is what stands between bias and groups: stride, padding, dilation."""
    return lambda x, weight, *rest: op(x, weight, *(rest if bias else (None,)), *how, groups)


def depthwise(op, *how):
    """As many groups as the channels that are in hand, as a model's own code has it."""
    return lambda x, weight, *bias: op(x, weight, *(bias or (None,)), *how, x.shape[-weight.ndim + 1])


CAUSAL = ([1], [2], [1])  # a stride of 1, two zeros on both sides
ROWS = [
    # each channel has a filter of its own
    Row(CONV1D, depthwise(CONV1D, *CAUSAL), [(2, 6, 9), (6, 1, 3)], "a b !c, b 1 !d -> a b !e"),
    Row(CONV1D, depthwise(CONV1D, *CAUSAL), [(2, 6, 9), (6, 1, 3), (6,)], "a b !c, b 1 !d, b -> a b !e"),
    Row(CONV1D, depthwise(CONV1D, [2], [0], [3]), [(2, 6, 9), (6, 1, 3), (6,)], "a b !c, b 1 !d, b -> a b !e"),
    Row(CONV1D, depthwise(CONV1D, *CAUSAL), [(6, 9), (6, 1, 3), (6,)], "a !b, a 1 !c, a -> a !d"),
    Row(CONV1D, depthwise(CONV1D, [1], [0], [1]), [(2, 6, 9), (6, 1, 1)], "a b c, b 1 1 -> a b c"),
    Row(CONV1D, depthwise(CONV1D, [2], [0], [1]), [(2, 6, 9), (6, 1, 1)], "a b !c, b 1 1 -> a b !d"),
    Row(CONV1D, depthwise(CONV1D, [1], [1], [1]), [(2, 6, 9), (6, 1, 1)], "a b !c, b 1 1 -> a b !d"),
    # several for each channel
    Row(CONV1D, convolution(CONV1D, 5, CAUSAL), [(2, 5, 9), (15, 1, 3), (15,)], "a b !c, b·d 1 !e, b·d -> a b·d !f"),
    # all channels in all filters
    Row(CONV1D, convolution(CONV1D, 1, CAUSAL), [(2, 5, 9), (7, 5, 3), (7,)], "a Σb !c, d Σb !e, d -> a d !f"),
    Row(CONV1D, convolution(CONV1D, 1, CAUSAL, False), [(2, 5, 9), (7, 5, 3)], "a Σb !c, d Σb !e -> a d !f"),
    Row(CONV1D, convolution(CONV1D, 1, ([1], [0], [1])), [(5, 9), (7, 5, 1), (7,)], "Σa b, c Σa 1, c -> c b"),
    Row(CONV1D, convolution(CONV1D, 1, CAUSAL), [(2, 1, 9), (7, 1, 3), (7,)], "a 1 !b, c 1 !d, c -> a c !e"),
    # groups of several inputs and outputs: whole groups may go, and then nothing is missing from a sum
    Row(
        CONV1D,
        convolution(CONV1D, 3, CAUSAL),
        [(2, 6, 9), (15, 2, 3), (15,)],
        "a b·!c !d, b·e !c !f, b·e -> a b·e !g",
    ),
    Row(
        CONV1D,
        convolution(CONV1D, 3, CAUSAL, False),
        [(2, 6, 9), (3, 2, 3)],
        "a b·!c !d, b !c !e -> a b !f",
    ),
    Row(SAME1D, depthwise(SAME1D, [1], "same", [1]), [(2, 6, 9), (6, 1, 3), (6,)], "a b !c, b 1 !d, b -> a b !e"),
    Row(
        SAME1D,
        convolution(SAME1D, 1, ([1], "valid", [1])),
        [(2, 5, 9), (7, 5, 3), (7,)],
        "a Σb !c, d Σb !e, d -> a d !f",
    ),
    Row(
        CONV2D,
        depthwise(CONV2D, [1, 1], [1, 0], [1, 1]),
        [(2, 6, 9, 4), (6, 1, 3, 2), (6,)],
        "a b !c !d, b 1 !e !f, b -> a b !g !h",
    ),
    Row(
        CONV2D,
        convolution(CONV2D, 1, ([2, 1], [0, 0], [1, 1])),
        [(5, 9, 4), (7, 5, 3, 2), (7,)],
        "Σa !b !c, d Σa !e !f, d -> d !g !h",
    ),
    Row(
        SAME2D,
        convolution(SAME2D, 3, ([1, 1], "same", [1, 1])),
        [(2, 6, 9, 4), (15, 2, 3, 1), (15,)],
        "a b·!c !d e, b·f !c !g 1, b·f -> a b·f !h e",
    ),
    Row(
        CONV1D,  # the channels are heads and head sizes, each with its own filter
        lambda x, w: CONV1D(aten.flatten.using_ints(x, 1, 2), w, None, [1], [2], [1], x.shape[1] * x.shape[2]),
        [(2, 3, 5, 9), (15, 1, 3)],
        "a b c !d, b·c 1 !e -> a b·c !f",
    ),
    Row(
        CONV1D,  # a group for each head
        lambda x, w: CONV1D(aten.flatten.using_ints(x, 1, 2), w, None, [1], [2], [1], 3),
        [(2, 3, 5, 9), (6, 5, 3)],
        "a b !c !d, b·e !c !f -> a b·e !g",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(convolutions) == {row.op for row in ROWS}


@pytest.mark.parametrize("op", sorted(rules_of(convolutions) & RESIZERS.keys(), key=str), ids=str)
def test_groups_are_computed_again(op):
    assert op in set().union(*(check(row) for row in ROWS if row.op is op))


def test_the_places_of_a_filter_are_refused_by_name():
    found = reasons(convolution(CONV1D, 1, CAUSAL), [(2, 5, 9), (7, 5, 3), (7,)])
    assert found == {"a filter slides over it at conv1d_default = conv1d.default"}


def test_the_inputs_of_a_group_are_refused_by_name():
    found = reasons(convolution(CONV1D, 3, CAUSAL), [(2, 6, 9), (15, 2, 3), (15,)])
    assert found == {
        "a filter slides over it at conv1d_default = conv1d.default",
        "summed over in groups at conv1d_default = conv1d.default",
    }
