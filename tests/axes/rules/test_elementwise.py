import numpy as np
import pytest
import torch
from brute_force import Mask, Row, check, check_narrowing, make_inputs, narrowable, reasons, record, rules_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from estfx.axes.rules import elementwise

aten = torch.ops.aten
END = 2**63 - 1  # how torch.export writes an open end

UNARY = (
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten._to_copy.default,
    aten.to.dtype_layout,
)
SMOOTH = (aten.silu.default, aten.softplus.default, aten.log_sigmoid.default)  # a vector's tail may round otherwise
DRAWN = (  # in place
    lambda x: aten.uniform_.default(x, -1.0, 1.0),
    aten.normal_.default,
    aten.exponential_.default,
    lambda x: aten.bernoulli_.float(x, 0.3),
)
IN_PLACE_DRAWS = (
    aten.uniform_.default,
    aten.normal_.default,
    aten.exponential_.default,
    aten.bernoulli_.float,
)
BITS = (aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor)
RANDOM = (aten.rand_like.default, aten.randn_like.default, aten.empty_like.default)


def own(op):
    """The operator in place, on a copy of its first operand."""
    return lambda x, *given: op(aten.clone.default(x), *given)


def put_together(x, shared):
    """Keys of two parts, the second the same for all heads, written into memory that was made for both."""
    heads, first, second = x.shape[1], x.shape[3], shared.shape[3]
    whole = aten.new_empty.default(x, [*x.shape[:3], first + second])
    aten.copy_.default(aten.slice.Tensor(whole, -1, 0, first), x)
    aten.copy_.default(aten.slice.Tensor(whole, -1, first, END), aten.expand.default(shared, [-1, heads, -1, -1]))
    return whole


def step_by_step(x, decay):
    """`h[:, t] = decay * h[:, t - 1] + x[:, t]`."""
    states = aten.zeros_like.default(x)
    before = aten.new_zeros.default(x, [x.shape[0], x.shape[2]])
    for t in range(x.shape[1]):
        before = aten.add.Tensor(aten.mul.Tensor(before, decay), aten.select.int(x, 1, t))
        aten.copy_.default(aten.select.int(states, 1, t), before)
    return states


def read_back(x, y):
    """A view that was made before the write reads what was written."""
    whole = aten.new_empty.default(x, [3, 5])
    turned = aten.transpose.int(whole, 0, 1)
    aten.copy_.default(aten.slice.Tensor(whole, 1, 0, 2), x)
    aten.mul_.Tensor(aten.slice.Tensor(turned, 0, 2, 5), y)
    return aten.neg.default(turned)


ROWS = [
    Row(aten.add.Tensor, aten.add.Tensor, [(3, 5), (3, 5)], "a b, a b -> a b"),
    Row(aten.add.Tensor, aten.add.Tensor, [(2, 3, 5), (5,)], "a b c, c -> a b c"),
    Row(aten.add.Tensor, aten.add.Tensor, [(5,), (2, 3, 5)], "a, b c a -> b c a"),
    Row(aten.add.Tensor, aten.add.Tensor, [(3, 1), (1, 5)], "a 1, 1 b -> a b"),
    Row(aten.add.Tensor, aten.add.Tensor, [(1, 5), (3, 5)], "1 a, b a -> b a"),
    Row(aten.add.Tensor, aten.add.Tensor, [(1, 1), (1,)], "1 1, 1 -> 1 1"),
    Row(aten.add.Tensor, aten.add.Tensor, [(7,), ()], "a, () -> a"),
    Row(aten.add.Tensor, lambda x: aten.add.Tensor(x, x), [(3, 5)], "a b -> a b"),
    Row(aten.add.Tensor, lambda x: aten.add.Tensor(x, aten.mT.default(x)), [(5, 5)], "a a -> a a"),
    # tagged as pointwise by torch, without a rule of their own
    Row(aten.mul.Tensor, aten.mul.Tensor, [(2, 3), (3,)], "a b, b -> a b"),
    Row(aten.mul.Scalar, lambda x: aten.mul.Scalar(x, 2.0), [(2, 3)], "a b -> a b"),
    Row(aten.where.self, aten.where.self, [Mask((3, 1)), (3, 5), (5,)], "a 1, a b, b -> a b"),
    Row(aten.addcmul.default, aten.addcmul.default, [(5,), (3, 5), (3, 1)], "a, b a, b 1 -> b a"),
    Row(aten.gt.Scalar, lambda x: aten.gt.Scalar(x, 0), [(2, 3)], "a b -> a b"),
    *(Row(op, op, [(3, 5)], "a b -> a b") for op in UNARY),
    *(Row(op, op, [(3, 5)], "a b -> a b", "close") for op in SMOOTH),
    *(Row(op, op, [(3, 5)], "a b -> a b", "shape") for op in RANDOM),
    Row(aten.detach_.default, lambda x: aten.detach_.default(aten.neg.default(x)), [(3, 5)], "a b -> a b"),
    Row(aten.full_like.default, lambda x: aten.full_like.default(x, 7), [(3, 5)], "a b -> a b"),
    Row(
        aten.bernoulli.default,
        lambda x: aten.bernoulli.default(aten.sigmoid.default(x)),
        [(3, 5)],
        "a b -> a b",
        "shape",
    ),
    Row(aten.dropout.default, lambda x: aten.dropout.default(x, 0.1, False), [(3, 5)], "a b -> a b"),
    Row(aten.dropout.default, lambda x: aten.dropout.default(x, 0.1, True), [(3, 5)], "a b -> a b", "shape"),
    Row(aten.native_dropout.default, lambda x: aten.native_dropout.default(x, 0.0, True), [(3, 5)], "a b -> a b, a b"),
    Row(
        aten.feature_dropout.default,
        lambda x: aten.feature_dropout.default(x, 0.1, False),
        [(2, 3, 5)],
        "a b c -> a b c",
    ),
    Row(aten.to.dtype, lambda x: aten.to.dtype(x, torch.float32), [(3, 5)], "a b -> a b"),
    Row(aten.to.device, lambda x: aten.to.device(x, "cpu", torch.float32), [(3, 5)], "a b -> a b"),
    # of the other tensor, only the dtype counts
    Row(aten.to.other, aten.to.other, [(3, 5), (5, 5)], "a b, c d -> a b"),
    Row(aten.to.other, aten.to.other, [(3, 5), (2, 3, 7)], "a b, c d e -> a b"),
    Row(aten.type_as.default, aten.type_as.default, [(3, 5), (5, 5)], "a b, c d -> a b"),
    Row(aten.where.Scalar, lambda m: aten.where.Scalar(m, 1.0, 2.0), [Mask((3, 5))], "a b -> a b"),
    Row(aten.where.ScalarSelf, lambda m, x: aten.where.ScalarSelf(m, 1.0, x), [Mask((5,)), (3, 5)], "a, b a -> b a"),
    Row(aten.where.ScalarOther, lambda m, x: aten.where.ScalarOther(m, x, 1.0), [Mask((3, 5)), (5,)], "a b, b -> a b"),
    Row(aten.masked_fill.Tensor, aten.masked_fill.Tensor, [(3, 5), Mask((5,)), ()], "a b, b, () -> a b"),
    Row(aten.rsub.Tensor, aten.rsub.Tensor, [(5,), (3, 5)], "a, b a -> b a"),
    Row(aten.polar.default, aten.polar.default, [(5,), (3, 5)], "a, b a -> b a", "close"),
    Row(aten.complex.default, aten.complex.default, [(3, 5), (3, 1)], "a b, a 1 -> a b"),
    Row(aten.floor_divide.default, aten.floor_divide.default, [(3, 5), (5,)], "a b, b -> a b"),
    Row(aten.floor_divide.default, lambda x: aten.floor_divide.default(x, 2), [(3, 5)], "a b -> a b"),
    *(Row(op, op, [Mask((5,)), Mask((3, 1))], "a, b 1 -> b a") for op in BITS),
    # the plain forms of what is in place below
    Row(aten.copy.default, aten.copy.default, [(3, 5), (3, 1)], "a b, a 1 -> a b"),
    Row(aten.fill.Scalar, lambda x: aten.fill.Scalar(x, 7.0), [(3, 5)], "a b -> a b"),
    Row(aten.fill.Tensor, aten.fill.Tensor, [(3, 5), ()], "a b, () -> a b"),
    Row(aten.zero.default, aten.zero.default, [(3, 5)], "a b -> a b"),
    Row(aten.uniform.default, lambda x: aten.uniform.default(x, -1.0, 1.0), [(3, 5)], "a b -> a b", "shape"),
    Row(aten.exponential.default, aten.exponential.default, [(3, 5)], "a b -> a b", "shape"),
    # in place, the values broadcast
    Row(aten.copy_.default, own(aten.copy_.default), [(3, 5), (5,)], "a b, b -> a b"),
    Row(aten.copy_.default, own(aten.copy_.default), [(3, 5), (3, 1)], "a b, a 1 -> a b"),
    Row(aten.copy_.default, own(aten.copy_.default), [(3, 5), ()], "a b, () -> a b"),
    Row(aten.add_.Tensor, own(aten.add_.Tensor), [(2, 3, 5), (3, 1)], "a b c, b 1 -> a b c"),
    Row(aten.fill_.Scalar, own(lambda x: aten.fill_.Scalar(x, 7.0)), [(3, 5)], "a b -> a b"),
    Row(aten.fill_.Tensor, own(aten.fill_.Tensor), [(3, 5), ()], "a b, () -> a b"),
    Row(aten.zero_.default, own(aten.zero_.default), [(3, 5)], "a b -> a b"),
    Row(
        aten.masked_fill_.Scalar,
        own(lambda x, m: aten.masked_fill_.Scalar(x, m, 7.0)),
        [(3, 5), Mask((5,))],
        "a b, b -> a b",
    ),
    Row(aten.masked_fill_.Tensor, own(aten.masked_fill_.Tensor), [(3, 5), Mask((3, 1)), ()], "a b, a 1, () -> a b"),
    Row(aten.dropout_.default, own(lambda x: aten.dropout_.default(x, 0.1, False)), [(3, 5)], "a b -> a b"),
    Row(aten.dropout_.default, own(lambda x: aten.dropout_.default(x, 0.1, True)), [(3, 5)], "a b -> a b", "shape"),
    *(Row(op, own(f), [(3, 5)], "a b -> a b", "shape") for op, f in zip(IN_PLACE_DRAWS, DRAWN, strict=True)),
    # into views of memory that was made for it
    Row(aten.copy_.default, put_together, [(2, 3, 5, 4), (2, 1, 5, 7)], "a b c d, a 1 c e -> a b c d+e"),
    Row(aten.copy_.default, step_by_step, [(2, 4, 3), (3,)], "a 1+1+1+1 b, b -> a 1+1+1+1 b"),
    Row(aten.copy_.default, read_back, [(3, 2), (3, 3)], "a b, c a -> b+c a"),
    Row(
        aten.fill_.Scalar,
        lambda x: (y := aten.clone.default(x), aten.fill_.Scalar(aten.slice.Tensor(y, 1, 2, END), 7.0))[0],
        [(3, 5)],
        "a b+c -> a b+c",
    ),
    Row(
        aten.zero_.default,
        lambda x: (y := aten.clone.default(x), aten.zero_.default(aten.select.int(y, 0, -1)))[0],
        [(3, 5)],
        "a+1 b -> a+1 b",
    ),
    Row(
        aten.masked_fill_.Scalar,
        lambda x, m: (y := aten.clone.default(x), aten.masked_fill_.Scalar(aten.transpose.int(y, 0, 1), m, 7.0))[0],
        [(3, 5), Mask((3,))],
        "a b, a -> a b",
    ),
    Row(
        aten.copy_.default,  # through a view with other sizes
        lambda x, y: (z := aten.clone.default(x), aten.copy_.default(aten.view.default(z, [2, 3, 5]), y))[0],
        [(2, 15), (3, 5)],
        "a b·c, b c -> a b·c",
    ),
    Row(aten.expand_as.default, aten.expand_as.default, [(3, 1), (2, 3, 5)], "a 1, b a c -> b a c"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(elementwise) <= {row.op for row in ROWS}  # and some that have no rule of their own


@settings(max_examples=60, deadline=None)
@given(
    st.permutations([1, 2, 3, 5]),
    st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 3))), min_size=2, max_size=2),
)
def test_any_broadcast(shape, operands):
    """Operands of any rank, some of their sizes 1."""
    shapes = [tuple(1 if i in ones else n for i, n in enumerate(shape))[4 - rank :] for rank, ones in operands]
    rng = np.random.default_rng(0)
    recorded = record(aten.mul.Tensor, make_inputs(shapes, rng))
    axes = walk(recorded)
    assert sorted(axis.size for axis in narrowable(axes)) == sorted({n for shape in shapes for n in shape} - {1})
    check_narrowing(recorded, axes, aten.mul.Tensor, rng)


def test_a_pointwise_operator_with_several_results_is_refused_by_name():
    assert reasons(lambda x: aten.frexp.Tensor(x), [(3, 5)]) == {
        "no rule for the operator at frexp_tensor = frexp.Tensor"
    }


IN_PLACE = [aten.add_.Tensor, aten.mul_.Tensor, aten.copy_.default]


@pytest.mark.parametrize("op", IN_PLACE, ids=str)
def test_an_operator_in_place_on_what_the_layer_is_given_is_refused_by_name(op):
    name = str(op).removeprefix("aten.")
    place = op._schema.name.removeprefix("aten::")
    (reason,) = reasons(op, [(3, 5), (3, 5)])
    assert reason.startswith(f"a value is changed in place at {place}")
    assert reason.endswith(f" = {name}")


@pytest.mark.parametrize("op", IN_PLACE, ids=str)
def test_so_is_one_on_a_view_of_it(op):
    (reason,) = reasons(lambda x, y: op(aten.transpose.int(x, 0, 1), y), [(5, 3), (3, 5)])
    assert "a value is changed in place" in reason


def test_an_unknown_operator_is_refused_by_name():
    (reason,) = reasons(lambda x: aten.fft_fft.default(x), [(3, 5)])
    assert reason == "no rule for the operator at fft_fft_default = fft_fft.default"
