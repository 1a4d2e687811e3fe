import pytest
import torch
from brute_force import Mask, Positions, Row, check, reasons, rules_of

from estfx.axes.rules import lookups

aten = torch.ops.aten
DISTINCT = torch.tensor([4, 0, 3])  # positions that differ, so that what is written depends on no order
PAIRS = torch.tensor([[4, 2], [0, 1], [3, 3]])


def index(*used):
    """`x[…]` with an index tensor wherever `used` says so."""

    def function(x, *given):
        rest = iter(given)
        return aten.index.Tensor(x, [next(rest) if use else None for use in used])

    return function


def index_put(op, accumulate=False):
    """`x[i, …] = values`; in place, on memory of the function's own."""

    def function(x, *given):
        *indices, values = given
        x = aten.clone.default(x) if op is aten.index_put_.default else x
        return op(x, list(indices), values, accumulate)

    return function


def written(op, *args, **kwargs):
    """The operator on `x`; in place, on memory of the function's own."""
    in_place = op._schema.name.endswith("_")
    return lambda x, *given: op(aten.clone.default(x) if in_place else x, *args, *given, **kwargs)


PUT = (aten.index_put.default, aten.index_put_.default)
INDEX_ADD = (aten.index_add.default, aten.index_add_.default, aten.index_copy.default, aten.index_copy_.default)
SCATTER = (aten.scatter.src, aten.scatter_.src, aten.scatter_add.default, aten.scatter_add_.default)
SCATTER_VALUE = (aten.scatter.value, aten.scatter_.value)
SORT = (
    (aten.sort.default, lambda x, dim: aten.sort.default(x, dim)),
    (
        aten.sort.stable,
        lambda x, dim: aten.sort.stable(x, stable=True, dim=dim),
    ),
)
ARGSORT = (
    (aten.argsort.default, lambda x, dim: aten.argsort.default(x, dim)),
    (
        aten.argsort.stable,
        lambda x, dim: aten.argsort.stable(x, stable=True, dim=dim),
    ),
)

ROWS = [
    Row(aten.index.Tensor, index(False, True), [(3, 5), Positions((7,), 5)], "a !b, c -> a c"),
    Row(aten.index.Tensor, index(True), [(5, 3), Positions((2, 7), 5)], "!a b, c d -> c d b"),
    Row(aten.index.Tensor, index(True, False), [(5, 3), Positions((7,), 5)], "!a b, c -> c b"),
    Row(aten.index.Tensor, index(False, True, False), [(2, 5, 3), Positions((), 5)], "a !b c, () -> a c"),
    Row(aten.index.Tensor, index(False, True), [(3, 5), Positions((1,), 5)], "a !b, 1 -> a 1"),
    Row(aten.index.Tensor, index(True, True), [(5, 3), Positions((7,), 5), Positions((7,), 3)], "!a !b, c, c -> c"),
    Row(
        aten.index.Tensor,  # index tensors are broadcast against each other
        index(False, True, True),
        [(2, 5, 3, 7), Positions((4, 1), 5), Positions((6,), 3)],
        "a !b !c d, e 1, f -> a e f d",
    ),
    Row(
        aten.index.Tensor,
        index(True, True),
        [(5, 3, 2), Positions((1,), 5), Positions((4, 6), 3)],
        "!a !b c, 1, d e -> d e c",
    ),
    Row(
        aten.index.Tensor,
        index(False, True, True, True),
        [(2, 5, 3, 7), Positions((4, 1, 1), 5), Positions((6, 1), 3), Positions((2,), 7)],
        "a !b !c !d, e 1 1, f 1, g -> a e f g",
    ),
    # positions are written to as often as they are given: they stay whole, too
    *(Row(op, index_put(op), [(5, 3), DISTINCT, (3, 3)], "!a b, !c, !d b -> !a b") for op in PUT),
    *(Row(op, index_put(op), [(5, 3, 2), PAIRS, (3, 2, 3, 2)], "!a b c, !d !e, !f !g b c -> !a b c") for op in PUT),
    *(Row(op, index_put(op), [(5, 3, 2), DISTINCT, (2,)], "!a b c, !d, c -> !a b c") for op in PUT),
    *(Row(op, index_put(op), [(5, 3, 2), DISTINCT, (3, 1)], "!a b c, !d, b 1 -> !a b c") for op in PUT),
    *(Row(op, index_put(op), [(5, 3, 2), DISTINCT, (3, 1, 2)], "!a b c, !d, !e 1 c -> !a b c") for op in PUT),
    *(Row(op, index_put(op), [(5, 3), DISTINCT, ()], "!a b, !c, () -> !a b") for op in PUT),
    *(Row(op, index_put(op), [(5, 3), DISTINCT, (1, 1)], "!a b, !c, 1 1 -> !a b") for op in PUT),
    *(
        Row(op, index_put(op), [(5, 4, 3), DISTINCT, DISTINCT % 4, (3, 3)], "!a !b c, !d, !e, !f c -> !a !b c")
        for op in PUT
    ),
    *(Row(op, index_put(op, True), [(5, 3), Positions((7,), 5), (7, 3)], "!a b, !c, !d b -> !a b") for op in PUT),
    *(Row(op, index_put(op, True), [(5, 3), Positions((7,), 5), (3,)], "!a b, !c, b -> !a b") for op in PUT),
    Row(
        aten.index_select.default,
        lambda x, i: aten.index_select.default(x, -2, i),
        [(2, 5, 3), Positions((7,), 5)],
        "a !b c, d -> a d c",
    ),
    Row(
        aten.index_select.default,
        lambda x, i: aten.index_select.default(x, 0, i),
        [(5, 3), Positions((1,), 5)],
        "!a b, 1 -> 1 b",
    ),
    Row(
        aten.index_select.default,
        lambda x, i: aten.index_select.default(x, 1, i),
        [(3, 5), Positions((), 5)],
        "a !b, () -> a 1",
    ),
    *(
        Row(
            op,
            lambda x, i, y, f=op: written(f, -2, i, y)(x),
            [(2, 5, 3), DISTINCT, (2, 3, 3)],
            "a !b c, !d, a !d c -> a !b c",
        )
        for op in INDEX_ADD
    ),
    *(
        Row(op, lambda x, i, y, f=op: written(f, 0, i, y)(x), [(5, 3), DISTINCT, (3, 3)], "!a b, !c, !c b -> !a b")
        for op in INDEX_ADD
    ),
    Row(
        aten.index_add.default,  # several times to the same place
        lambda x, i, y: aten.index_add.default(x, 0, i, y, alpha=2),
        [(5, 3), Positions((7,), 5), (7, 3)],
        "!a b, !c, !c b -> !a b",
    ),
    Row(
        aten.gather.default,
        lambda x, i: aten.gather.default(x, -1, i),
        [(3, 5), Positions((3, 2), 5)],
        "a !b, a c -> a c",
    ),
    Row(
        aten.gather.default,
        lambda x, i: aten.gather.default(x, 0, i),
        [(5, 3, 7), Positions((2, 2, 7), 5)],
        "!a !b c, d !e c -> d !e c",
    ),
    Row(
        aten.gather.default,
        lambda x, i: aten.gather.default(x, -2, i),
        [(3, 5, 2), Positions((1, 7, 2), 5)],
        "!a !b c, 1 d c -> 1 d c",
    ),
    *(
        Row(op, lambda x, i, y, f=op: written(f, -1, i, y)(x), [(3, 5), PAIRS, (3, 2)], "a !b, a !c, a !c -> a !b")
        for op in SCATTER
    ),
    *(
        Row(  # positions for a part of it alone, and more values than positions
            op,
            lambda x, i, y, f=op: written(f, 1, i, y)(x),
            [(4, 5, 7), PAIRS[:, :, None].expand(3, 2, 7), (4, 3, 7)],
            "!a !b c, !d !e c, !f !g c -> !a !b c",
        )
        for op in SCATTER
    ),
    *(
        Row(op, lambda x, i, f=op: written(f, 1, i, 7.0)(x), [(3, 5), PAIRS], "a !b, a !c -> a !b")
        for op in SCATTER_VALUE
    ),
    *(
        Row(op, lambda x, i, f=op: written(f, -2, i, 7.0)(x), [(5, 2), PAIRS], "!a b, !c b -> !a b")
        for op in SCATTER_VALUE
    ),
    Row(
        aten.scatter_reduce.two,
        lambda x, i, y: aten.scatter_reduce.two(x, -1, i, y, "amax"),
        [(3, 5), Positions((3, 2), 5), (3, 2)],
        "a !b, a !c, a !c -> a !b",
    ),
    Row(
        aten.scatter_reduce.two,
        lambda x, i, y: aten.scatter_reduce.two(x, 0, i, y, "sum", include_self=False),
        [(5, 3), Positions((7, 3), 5), (7, 3)],
        "!a b, !c b, !c b -> !a b",
    ),
    Row(aten.topk.default, lambda x: aten.topk.default(x, 2), [(3, 5)], "a !b -> a !c, a !c"),
    Row(aten.topk.default, lambda x: aten.topk.default(x, 2, 0), [(5, 3, 7)], "!a b c -> !d b c, !d b c"),
    Row(aten.topk.default, lambda x: aten.topk.default(x, 1, -2), [(3, 5, 2)], "a !b c -> a 1 c, a 1 c"),
    Row(aten.topk.default, lambda x: aten.topk.default(x, 5, 1), [(3, 5)], "a !b -> a !c, a !c"),
    *(Row(op, lambda x, f=f: f(x, -1), [(3, 5)], "a !b -> a !b, a !b") for op, f in SORT),
    *(Row(op, lambda x, f=f: f(x, 0), [(5, 3, 2)], "!a b c -> !a b c, !a b c") for op, f in SORT),
    *(Row(op, lambda x, f=f: f(x, -1), [(3, 5)], "a !b -> a !b") for op, f in ARGSORT),
    *(Row(op, lambda x, f=f: f(x, 0), [(5, 3, 2)], "!a b c -> !a b c") for op, f in ARGSORT),
    Row(aten.sort.default, aten.sort.default, [()], "() -> (), ()"),
    Row(aten.topk.default, lambda x: aten.topk.default(x, 1), [()], "() -> (), ()"),
    Row(aten.one_hot.default, lambda i: aten.one_hot.default(i, 7), [Positions((3, 5), 7)], "a b -> a b !c"),
    Row(aten.one_hot.default, lambda i: aten.one_hot.default(i, 7), [Positions((), 7)], "() -> !a"),
    Row(aten.embedding.default, aten.embedding.default, [(5, 3), Positions((2, 7), 5)], "!a b, c d -> c d b"),
    Row(aten.embedding.default, aten.embedding.default, [(5, 3), Positions((), 5)], "!a b, () -> b"),
    Row(
        aten.index.Tensor,  # positions that were found, not given
        lambda x, y: aten.index.Tensor(x, [aten.topk.default(y, 2, 0)[1]]),
        [(5, 3), (5, 7)],
        "!a b, !c d -> !e d b",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(lookups) == {row.op for row in ROWS}


APART = "indexed by a mask, or in places apart, at index_tensor = index.Tensor"
WRITTEN = "written by a mask, or in places apart, at index_put_default = index_put.default"


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda x: aten.index.Tensor(x, [aten.gt.Scalar(x, 0)]), [(3, 5)], APART),
        (index(False, True), [(3, 5), torch.tensor([True, False, True, True, False])], APART),
        (index(True, False, True), [(3, 5, 7), Positions((2,), 3), Positions((2,), 7)], APART),
        (index_put(aten.index_put.default), [(3, 5), Mask((3, 5)), ()], WRITTEN),
        (lambda x, i, y: aten.index_put.default(x, [None, i], y), [(3, 5), DISTINCT, (3, 3)], WRITTEN),
        (
            lambda x, i, y: aten.index_put.default(x, [i, None, i], y),
            [(5, 3, 5), DISTINCT, (3, 3)],
            WRITTEN,
        ),
    ],
)
def test_what_is_refused_is_refused_by_name(function, inputs, reason):
    assert reasons(function, inputs) == {reason}
