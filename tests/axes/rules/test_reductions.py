import math

import pytest
import torch
from brute_force import Row, check, reasons, rules_of

from estfx.axes.rules import reductions
from estfx.axes.walk import RESIZERS

aten = torch.ops.aten


def layer_norm(count):
    return lambda x, *weights: aten.layer_norm.default(x, list(x.shape[-count:]), *weights)


def rms_norm(count):
    return lambda x, *weights: aten.rms_norm.default(x, list(x.shape[-count:]), *weights)


def group_norm(num_groups, *dims):
    """In `num_groups` groups, times the sizes of `dims`; channels are all between the first and last of `x`."""

    def function(x, *weights):
        groups = num_groups * math.prod(x.shape[d] for d in dims)
        return aten.group_norm.default(aten.flatten.using_ints(x, 1, -2), groups, *weights)

    return function


ALL_ON_DIM = {
    aten.mean.dim: lambda x, *how: aten.mean.dim(x, *how),
    aten.amax.default: lambda x, *how: aten.amax.default(x, *how),
    aten.amin.default: lambda x, *how: aten.amin.default(x, *how),
    aten.logsumexp.default: lambda x, *how: aten.logsumexp.default(x, *how),
    aten.var.dim: lambda x, dim, *keep: aten.var.dim(x, dim, False, *keep),
    aten.std.dim: lambda x, dim, *keep: aten.std.dim(x, dim, False, *keep),
    aten.norm.ScalarOpt_dim: lambda x, dim, *keep: aten.norm.ScalarOpt_dim(x, 2, dim, *keep),
    aten.linalg_vector_norm.default: lambda x, dim, *keep: aten.linalg_vector_norm.default(x, 2, dim, *keep),
    aten.var.correction: lambda x, dim, keep=False: aten.var.correction(x, dim, correction=0, keepdim=keep),
    aten.std.correction: lambda x, dim, keep=False: aten.std.correction(x, dim, correction=0, keepdim=keep),
}
WITHOUT_DIM = {
    aten.mean.dim: lambda x: aten.mean.dim(x, None),
    aten.amax.default: lambda x: aten.amax.default(x),
    aten.var.correction: lambda x: aten.var.correction(x, correction=0),
    aten.linalg_vector_norm.default: lambda x: aten.linalg_vector_norm.default(x),
}

ROWS = [
    *(Row(op, lambda x, f=f: f(x, [-1]), [(3, 5)], "a ~b -> a", "close") for op, f in ALL_ON_DIM.items()),
    *(Row(op, lambda x, f=f: f(x, [1], True), [(2, 3, 5)], "a ~b c -> a 1 c", "close") for op, f in ALL_ON_DIM.items()),
    *(Row(op, lambda x, f=f: f(x, [0, -1]), [(2, 3, 5)], "~a b ~c -> b", "close") for op, f in ALL_ON_DIM.items()),
    *(Row(op, f, [(3, 5)], "~a ~b -> ()", "close") for op, f in WITHOUT_DIM.items()),
    Row(aten.mean.dim, lambda x: aten.mean.dim(x, [], True), [(3, 5)], "~a ~b -> 1 1", "close"),
    Row(
        aten.mean.dim,  # normalised by hand
        lambda x, w: aten.mul.Tensor(
            w, aten.mul.Tensor(x, aten.rsqrt.default(aten.mean.dim(aten.pow.Tensor_Scalar(x, 2), [-1], True)))
        ),
        [(3, 5), (5,)],
        "a ~b, ~b -> a ~b",
        "close",
    ),
    Row(aten.mean.default, aten.mean.default, [(3, 5)], "!a !b -> ()"),
    Row(aten.sum.default, aten.sum.default, [(3, 5)], "!a !b -> ()"),
    Row(aten.var.default, aten.var.default, [(3, 5)], "!a !b -> ()"),
    Row(aten.max.default, aten.max.default, [(3, 5)], "!a !b -> ()"),
    Row(aten.min.default, aten.min.default, [(3, 5)], "!a !b -> ()"),
    Row(aten.sum.dim_IntList, lambda x: aten.sum.dim_IntList(x, [-1]), [(3, 5)], "a !~b -> a"),
    Row(aten.sum.dim_IntList, lambda x: aten.sum.dim_IntList(x, [0, -1], True), [(2, 3, 5)], "!~a b !~c -> 1 b 1"),
    Row(aten.sum.dim_IntList, lambda x: aten.sum.dim_IntList(x, None), [(3, 5)], "!~a !~b -> ()"),
    Row(aten.prod.dim_int, lambda x: aten.prod.dim_int(x, -1), [(3, 5)], "a !~b -> a"),
    Row(aten.max.dim, lambda x: aten.max.dim(x, -1), [(3, 5)], "a !~b -> a, a"),
    Row(aten.max.dim, lambda x: aten.max.dim(x, 0, True), [(3, 5)], "!~a b -> 1 b, 1 b"),
    Row(aten.min.dim, lambda x: aten.min.dim(x, 1), [(2, 3, 5)], "a !~b c -> a c, a c"),
    Row(aten.softmax.int, lambda x: aten.softmax.int(x, -1), [(3, 5)], "a ~b -> a ~b", "close"),
    Row(aten.softmax.int, lambda x: aten.softmax.int(x, 1, torch.float64), [(2, 3, 5)], "a ~b c -> a ~b c", "close"),
    Row(aten._softmax.default, lambda x: aten._softmax.default(x, 0, False), [(3, 5)], "~a b -> ~a b", "close"),
    Row(aten.log_softmax.int, lambda x: aten.log_softmax.int(x, -2), [(3, 5)], "~a b -> ~a b", "close"),
    Row(aten._log_softmax.default, lambda x: aten._log_softmax.default(x, 1, False), [(3, 5)], "a ~b -> a ~b", "close"),
    Row(aten.cumsum.default, lambda x: aten.cumsum.default(x, -1), [(3, 5)], "a !b -> a !b"),
    Row(aten.cumsum.default, lambda x: aten.cumsum.default(x, 1), [(2, 3, 5)], "a !b c -> a !b c"),
    Row(aten.cumprod.default, lambda x: aten.cumprod.default(x, 0), [(3, 5)], "!a b -> !a b"),
    Row(aten.layer_norm.default, layer_norm(1), [(2, 3, 5)], "a b ~c -> a b ~c", "close"),
    Row(aten.layer_norm.default, layer_norm(1), [(3, 5), (5,), (5,)], "a ~b, ~b, ~b -> a ~b", "close"),
    Row(aten.layer_norm.default, layer_norm(2), [(2, 3, 5), (3, 5)], "a ~b ~c, ~b ~c -> a ~b ~c", "close"),
    Row(
        aten.layer_norm.default,  # over heads · head_dim
        lambda x, w: layer_norm(1)(aten.view.default(x, [x.shape[0], -1]), w),
        [(2, 3, 5), (15,)],
        "a ~b ~c, ~b·~c -> a ~b·~c",
        "close",
    ),
    Row(aten.rms_norm.default, rms_norm(1), [(2, 3, 5)], "a b ~c -> a b ~c", "close"),
    Row(aten.rms_norm.default, rms_norm(1), [(3, 5), (5,)], "a ~b, ~b -> a ~b", "close"),
    Row(aten.rms_norm.default, rms_norm(2), [(2, 3, 5), (3, 5)], "a ~b ~c, ~b ~c -> a ~b ~c", "close"),
    *(
        Row(aten.group_norm.default, group_norm(*groups), inputs, dims, "close")
        for groups, inputs, dims in (
            ((1,), [(2, 7, 3)], "a ~b ~c -> a ~b ~c"),
            ((1,), [(2, 7, 3), (7,), (7,)], "a ~b ~c, ~b, ~b -> a ~b ~c"),
            ((7,), [(2, 7, 3), (7,)], "a b ~c, b -> a b ~c"),
            ((2,), [(2, 12, 5)], "a b·~c ~d -> a b·~c ~d"),
            ((6,), [(2, 12, 5), (12,)], "a b·~c ~d, b·~c -> a b·~c ~d"),
            ((1, 1), [(2, 3, 5, 7)], "a b ~c ~d -> a b·~c ~d"),
            ((1, 1, 2), [(2, 2, 3, 5, 7), (30,)], "a b c ~d ~e, b·c·~d -> a b·c·~d ~e"),
            ((1, 1), [(2, 2, 3, 5, 7)], "a b ~c ~d ~e -> a b·~c·~d ~e"),
            ((3, 1), [(2, 2, 15, 7)], "a b c·~d ~e -> a b·c·~d ~e"),
        )
    ),
    Row(
        aten.group_norm.default,  # channels put together from two parts
        lambda x, y: aten.group_norm.default(aten.cat.default([x, y], 1), 5),
        [(2, 6, 7), (2, 9, 7)],
        "a b·~c ~d, a e·~c ~d -> a (b+e)·~c ~d",
        "close",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(reductions) == {row.op for row in ROWS}


@pytest.mark.parametrize("op", sorted(rules_of(reductions) & RESIZERS.keys(), key=str), ids=str)
def test_sizes_are_computed_again(op):
    assert op in set().union(*(check(row) for row in ROWS if row.op is op))


def test_groups_that_do_not_divide_the_channels_units_are_refused_by_name():
    found = reasons(group_norm(2), [(2, 5, 4, 7)])  # 5 · 4 channels in 2 groups
    assert found == {"groups do not divide the channels at group_norm_default = group_norm.default"}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (aten.sum.default, "all elements are reduced to one at sum_default = sum.default"),
        (lambda x: aten.sum.dim_IntList(x, [0, 1]), "summed over at sum_dim_int_list = sum.dim_IntList"),
        (lambda x: aten.max.dim(x, 1)[0], "a position is taken at max_dim = max.dim"),
        (lambda x: aten.cumsum.default(x, 1), "summed up in order at cumsum_default = cumsum.default"),
        (lambda x: aten.topk.default(x, 2)[0], "the largest are taken at topk_default = topk.default"),
        (lambda x: aten.median.default(x), "no rule for the operator at median_default = median.default"),
    ],
)
def test_what_is_refused_is_refused_by_name(function, reason):
    assert reasons(function, [(3, 5)]) == {reason}
