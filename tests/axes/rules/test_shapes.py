from itertools import pairwise

import numpy as np
import pytest
import torch
from brute_force import Row, check, check_narrowing, in_letters, make_inputs, reasons, record, rules_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from estfx.axes.rules import shapes
from estfx.axes.walk import RESIZERS

aten = torch.ops.aten


def sized(op, *sizes):
    """An operator that takes sizes; None stands for the size that the input has there."""
    return lambda x: op(x, [x.shape[i] if size is None else size for i, size in enumerate(sizes)])


ROWS = [
    Row(aten.view.default, sized(aten.view.default, 2, 3, 5), [(2, 15)], "a b·c -> a b c"),
    Row(aten.view.default, sized(aten.view.default, 2, -1, 5), [(2, 15)], "a b·c -> a b c"),
    Row(aten.view.default, sized(aten.view.default, 2, 15), [(2, 3, 5)], "a b c -> a b·c"),
    Row(aten.view.default, sized(aten.view.default, -1), [(2, 3, 5)], "a b c -> a·b·c"),
    Row(aten.view.default, sized(aten.view.default, 6, 35), [(2, 3, 5, 7)], "a b c d -> a·b c·d"),
    Row(aten.view.default, sized(aten.view.default, 10, 3), [(2, 15)], "a b·c -> a·b c"),
    Row(aten.view.default, sized(aten.view.default, 1, 15, 1), [(3, 5)], "a b -> 1 a·b 1"),
    Row(aten.view.default, sized(aten.view.default, 3, 5), [(3, 1, 5, 1)], "a 1 b 1 -> a b"),
    Row(aten.view.default, sized(aten.view.default, 1, 1), [()], "() -> 1 1"),
    Row(aten.view.default, sized(aten.view.default, 12, 2), [(4, 6)], "a b·c -> a·b c"),
    Row(aten._unsafe_view.default, sized(aten._unsafe_view.default, 2, 3, 5), [(2, 15)], "a b·c -> a b c"),
    Row(aten.reshape.default, sized(aten.reshape.default, 2, 3, 5), [(2, 15)], "a b·c -> a b c"),
    Row(
        aten.reshape.default,  # heads back to back
        lambda x: aten.reshape.default(aten.transpose.int(x, 1, 2), [x.shape[0], x.shape[2], -1]),
        [(2, 3, 5, 7)],
        "a b c d -> a c b·d",
    ),
    Row(aten.flatten.using_ints, aten.flatten.using_ints, [(2, 3, 5)], "a b c -> a·b·c"),
    Row(aten.flatten.using_ints, lambda x: aten.flatten.using_ints(x, -2, -1), [(2, 3, 5)], "a b c -> a b·c"),
    Row(aten.unflatten.int, lambda x: aten.unflatten.int(x, 1, [3, 5]), [(2, 15, 7)], "a b·c d -> a b c d"),
    Row(aten.unflatten.int, lambda x: aten.unflatten.int(x, -2, [-1, 5]), [(2, 15, 7)], "a b·c d -> a b c d"),
    Row(aten.unflatten.int, lambda x: aten.unflatten.int(x, -1, [2, -1, 5]), [(7, 30)], "a b·c·d -> a b c d"),
    Row(aten.view_as.default, aten.view_as.default, [(2, 15), (2, 3, 5)], "a b·c, a b c -> a b c"),
    Row(aten.reshape_as.default, aten.reshape_as.default, [(2, 3, 5), (6, 5)], "a b c, a·b c -> a·b c"),
    Row(aten.transpose.int, lambda x: aten.transpose.int(x, 0, 2), [(2, 3, 5)], "a b c -> c b a"),
    Row(aten.transpose.int, lambda x: aten.transpose.int(x, -1, -2), [(2, 3, 5)], "a b c -> a c b"),
    Row(aten.swapaxes.default, lambda x: aten.swapaxes.default(x, 0, -1), [(2, 3, 5)], "a b c -> c b a"),
    Row(aten.swapdims.default, lambda x: aten.swapdims.default(x, 1, -1), [(2, 3, 5)], "a b c -> a c b"),
    Row(aten.permute.default, lambda x: aten.permute.default(x, [2, 0, 1]), [(2, 3, 5)], "a b c -> c a b"),
    Row(aten.permute.default, lambda x: aten.permute.default(x, [0, -1, -2]), [(2, 3, 5)], "a b c -> a c b"),
    Row(aten.t.default, aten.t.default, [(2, 3)], "a b -> b a"),
    Row(aten.t.default, aten.t.default, [(3,)], "a -> a"),
    Row(aten.numpy_T.default, aten.numpy_T.default, [(2, 3)], "a b -> b a"),
    Row(aten.mT.default, aten.mT.default, [(2, 3, 5)], "a b c -> a c b"),
    Row(aten.adjoint.default, aten.adjoint.default, [(2, 3, 5)], "a b c -> a c b"),
    Row(aten.movedim.int, lambda x: aten.movedim.int(x, 0, -1), [(2, 3, 5)], "a b c -> b c a"),
    Row(aten.movedim.int, lambda x: aten.movedim.int(x, -1, 1), [(2, 3, 5, 7)], "a b c d -> a d b c"),
    Row(aten.movedim.intlist, lambda x: aten.movedim.intlist(x, [0, 2], [-1, 0]), [(2, 3, 5, 7)], "a b c d -> c b d a"),
    Row(aten.unsqueeze.default, lambda x: aten.unsqueeze.default(x, 1), [(2, 3)], "a b -> a 1 b"),
    Row(aten.unsqueeze.default, lambda x: aten.unsqueeze.default(x, -1), [(2, 3)], "a b -> a b 1"),
    Row(aten.unsqueeze.default, lambda x: aten.unsqueeze.default(x, -3), [(2, 3)], "a b -> 1 a b"),
    Row(aten.squeeze.default, aten.squeeze.default, [(1, 3, 1, 5)], "1 a 1 b -> a b"),
    Row(aten.squeeze.dim, lambda x: aten.squeeze.dim(x, 2), [(1, 3, 1, 5)], "1 a 1 b -> 1 a b"),
    Row(aten.squeeze.dim, lambda x: aten.squeeze.dim(x, -1), [(2, 3)], "a b -> a b"),
    Row(aten.squeeze.dims, lambda x: aten.squeeze.dims(x, [0, -2, -1]), [(1, 3, 1, 5)], "1 a 1 b -> a b"),
    Row(aten.expand.default, lambda x: aten.expand.default(x, [x.shape[0], 7, -1]), [(2, 1, 3)], "a 1 b -> a c b"),
    Row(aten.expand.default, lambda x: aten.expand.default(x, [5, *x.shape]), [(2, 3)], "a b -> c a b"),
    Row(aten.expand.default, lambda x: aten.expand.default(x, [5, 2, -1]), [(2, 3)], "a b -> c a b"),
    Row(
        aten.expand.default,  # KV heads repeated for their queries
        lambda x: aten.reshape.default(
            aten.expand.default(aten.unsqueeze.default(x, 2), [2, 3, 5, 7, 2]), [x.shape[0], -1, 7, 2]
        ),
        [(2, 3, 7, 2)],
        "a b c d -> a b·e c d",
    ),
    Row(
        aten.broadcast_to.default,
        lambda x: aten.broadcast_to.default(x, [2, *x.shape[:1], 5]),
        [(3, 1)],
        "a 1 -> b a c",
    ),
    Row(aten.repeat.default, lambda x: aten.repeat.default(x, [1, 3]), [(2, 5)], "a b -> a c·b"),
    Row(aten.repeat.default, lambda x: aten.repeat.default(x, [7, 2, 1]), [(3, 5)], "a b -> c d·a b"),
    Row(aten.repeat.default, lambda x: aten.repeat.default(x, [3, 1]), [(1, 5)], "1 a -> b a"),
    Row(
        aten.repeat_interleave.self_int,
        lambda x: aten.repeat_interleave.self_int(x, 3, 1),
        [(2, 5, 7)],
        "a b c -> a b·d c",
    ),
    Row(
        aten.repeat_interleave.self_int,
        lambda x: aten.repeat_interleave.self_int(x, 2, -1, output_size=2 * x.shape[-1]),
        [(3, 5)],
        "a b -> a b·c",
    ),
    Row(aten.repeat_interleave.self_int, lambda x: aten.repeat_interleave.self_int(x, 1, 0), [(3, 5)], "a b -> a b"),
    Row(aten.stack.default, lambda *xs: aten.stack.default(xs), [(3, 5), (3, 5)], "a b, a b -> !c a b"),
    Row(aten.stack.default, lambda *xs: aten.stack.default(xs, -1), [(3, 5)] * 3, "a b, a b, a b -> a b !c"),
    Row(aten.stack.default, lambda *xs: aten.stack.default(xs, -2), [(3, 5)] * 2, "a b, a b -> a !c b"),
    Row(
        aten.view_as_real.default,
        lambda x, y: aten.view_as_real.default(aten.complex.default(x, y)),
        [(3, 5)] * 2,
        "a b, a b -> a b !c",
    ),
    Row(
        aten.view_as_complex.default,
        lambda x: aten.view_as_complex.default(aten.reshape.default(x, [*x.shape[:-1], -1, 2])),
        [(3, 10)],
        "a b·!c -> a b",
    ),
    Row(aten.flip.default, lambda x: aten.flip.default(x, [-1]), [(3, 5)], "a !b -> a !b"),
    Row(aten.roll.default, lambda x: aten.roll.default(x, [1], [1]), [(2, 3, 5)], "a !b c -> a !b c"),
    Row(aten.roll.default, lambda x: aten.roll.default(x, [1]), [(2, 3)], "!a !b -> !a !b"),
    Row(aten.pad.default, lambda x: aten.pad.default(x, [0, 0, 2, 0]), [(2, 3, 5)], "a !b c -> a !d c"),
    Row(aten.pad.default, lambda x: aten.pad.default(x, [1, 1], "constant", 2.0), [(2, 3)], "a !b -> a !c"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(shapes) == {row.op for row in ROWS}


@pytest.mark.parametrize("op", sorted(rules_of(shapes) & RESIZERS.keys(), key=str), ids=str)
def test_sizes_are_computed_again(op):
    assert op in set().union(*(check(row) for row in ROWS if row.op is op))


def test_sizes_that_do_not_split_are_refused():
    found = reasons(lambda x: aten.view.default(aten.view.default(x, [4, 9]), [6, 6]), [(36,)])
    assert found == {"sizes do not split at view_default_1 = view.default"}


def test_dimensions_that_do_not_line_up_are_refused():
    def function(x, y):
        return aten.add.Tensor(aten.reshape.default(x, [6, 6]), aten.view.default(y, [6, 6]))

    assert reasons(function, [(4, 9), (6, 6)]) == {"sizes do not split at reshape_default = reshape.default"}

    def both(x, y):
        return aten.add.Tensor(aten.view.default(x, [36]), aten.view.default(y, [36]))

    assert reasons(both, [(4, 9), (9, 4)]) == {"dimensions do not line up at add_tensor = add.Tensor"}


def test_interleaving_over_all_elements_is_refused():
    (reason,) = reasons(lambda x: aten.repeat_interleave.self_int(x, 2), [(3, 5)])
    assert reason.startswith("repeat_interleave over all elements")


def test_a_view_as_another_dtype_is_refused_by_name():
    (reason,) = reasons(lambda x: aten.view.dtype(x, torch.int64), [(3, 5)])
    assert reason == "no rule for the operator at view_dtype = view.dtype"


# -- any regrouping ----------------------------------------------------------------------------------------------------


@st.composite
def regroupings(draw):
    """Two shapes of the same elements, and the sizes that both are made of."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=5))
    shapes_ = []
    for _ in range(2):
        ends = [*sorted(draw(st.sets(st.integers(1, len(sizes) - 1)))), len(sizes)] if len(sizes) > 1 else [1]
        starts = [0, *ends[:-1]]
        shapes_.append(tuple(int(np.prod(sizes[s:e])) for s, e in zip(starts, ends, strict=True)))
    return sizes, *shapes_


@settings(max_examples=80, deadline=None)
@given(regroupings())
def test_any_regrouping_splits_as_far_as_it_must(drawn):
    _, before, after = drawn
    recorded = record(
        lambda x: aten.view.default(x, list(after)), make_inputs([before], rng := np.random.default_rng(0))
    )
    axes = walk(recorded)
    # both shapes cut the elements at products of their minor sizes; an axis lies between any two of those
    ends = sorted({int(np.prod(shape[i:])) for shape in (before, after) for i in range(len(shape) + 1)})
    want = [b // a for a, b in pairwise(ends)][::-1]
    got = [axis.size for dim in axes.dims[recorded.inputs[0].name] for axis in dim.axes() if axis.size > 1]
    assert got == want
    assert "!" not in in_letters(axes, recorded)
    check_narrowing(recorded, axes, lambda x: x, rng)
