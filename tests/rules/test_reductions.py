import pytest
import torch
from brute_force import Row, check, reasons, rules_of

from estfx.rules import reductions
from estfx.walk import RESIZERS

aten = torch.ops.aten


def layer_norm(count):
    return lambda x, *weights: aten.layer_norm.default(x, list(x.shape[-count:]), *weights)


def rms_norm(count):
    return lambda x, *weights: aten.rms_norm.default(x, list(x.shape[-count:]), *weights)


def group_norm(num_groups):
    """Takes as many groups as channels allow, if those are fewer: for narrowed inputs."""
    return lambda x, *weights: aten.group_norm.default(x, num_groups, *weights)


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
    Row(aten.group_norm.default, group_norm(1), [(2, 7)], "a ~b -> a ~b", "close"),
    Row(aten.group_norm.default, group_norm(1), [(2, 7, 3), (7,), (7,)], "a ~b ~c, ~b, ~b -> a ~b ~c", "close"),
]


def channels(*sizes):
    """A function that takes channels apart, normalises them in groups, and keeps the number of groups in proportion."""

    def function(num_groups, counted):
        def normalise(x, *weights):
            return aten.group_norm.default(
                aten.flatten.using_ints(x, 1, len(sizes)), num_groups if counted else 1, *weights
            )

        return normalise

    return function


GROUPED = [
    # (sizes that the channels are made of, groups)
    ((3, 5), 3, "a b c -> a b·~c"),
    ((2, 3, 5), 6, "a b c d -> a b·c·~d"),
    ((2, 3, 5), 2, "a b c d -> a b·~c·~d"),
    ((6, 5), 3, "a b·~c d -> a b·~c·~d"),
    ((2, 15), 6, "a b c·d -> a b·c·~d"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(reductions) == {row.op for row in ROWS}
