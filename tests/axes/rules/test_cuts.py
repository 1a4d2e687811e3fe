import numpy as np
import pytest
import torch
from brute_force import Row, check, check_narrowing, make_inputs, reasons, record, rules_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim, export

from estfx.axes.rules import cuts
from estfx.axes.walk import RESIZERS, Walk
from estfx.graphs import tags

aten = torch.ops.aten
END = 2**63 - 1  # how torch.export writes an open end


def slices(*args):
    return lambda x: aten.slice.Tensor(x, *args)


def heads_then(op, *args):
    """`op` on a dimension that is `3 · 5`."""
    return lambda x: op(aten.view.default(x, [*x.shape[:-2], -1]), *args)


ROWS = [
    Row(aten.slice.Tensor, slices(1, 0, 3), [(2, 7)], "a b+c -> a b"),
    Row(aten.slice.Tensor, slices(1, 3, END), [(2, 7)], "a b+c -> a c"),
    Row(aten.slice.Tensor, slices(-1, 2, 5), [(3, 7)], "a b+c+d -> a c"),
    Row(aten.slice.Tensor, slices(-1, -3, END), [(3, 7)], "a b+c -> a c"),
    Row(aten.slice.Tensor, slices(-1, None, -3), [(3, 7)], "a b+c -> a b"),
    Row(aten.slice.Tensor, slices(1, 0, END), [(2, 7)], "a b -> a b"),
    Row(aten.slice.Tensor, slices(0, 0, 100), [(5, 7)], "a b -> a b"),
    Row(aten.slice.Tensor, slices(1, 5, 2), [(2, 7)], "a b+c -> a 0"),
    Row(aten.slice.Tensor, slices(1, 0, END, 2), [(3, 10)], "a b·!c -> a b"),
    Row(aten.slice.Tensor, slices(1, 1, END, 2), [(3, 10)], "a b·!c -> a b"),
    Row(aten.slice.Tensor, slices(-1, 2, 15, 3), [(2, 15)], "a b·!c -> a b"),
    Row(aten.slice.Tensor, slices(1, 2, END, 2), [(3, 10)], "a !b -> a !c"),
    Row(aten.slice.Tensor, slices(1, 0, 8, 2), [(3, 10)], "a !b -> a !c"),
    Row(aten.slice.Tensor, slices(1, 0, END, 2), [(3, 7)], "a !b -> a !c"),
    Row(aten.slice.Tensor, heads_then(aten.slice.Tensor, 1, 5, 15), [(2, 3, 5)], "a 1+b c -> a b·c"),
    Row(
        aten.slice.Tensor,  # rotary halves
        lambda x: aten.cat.default([aten.slice.Tensor(x, -1, 5, END), aten.slice.Tensor(x, -1, 0, 5)], -1),
        [(3, 10)],
        "a b+c -> a c+b",
    ),
    Row(
        aten.slice.Tensor,  # cuts that overlap
        lambda x: [aten.slice.Tensor(x, 1, 0, 5), aten.slice.Tensor(x, 1, 2, END)],
        [(2, 7)],
        "a b+c+d -> a b+c, a c+d",
    ),
    Row(aten.narrow.default, lambda x: aten.narrow.default(x, 1, 2, 3), [(2, 7)], "a b+c+d -> a c"),
    Row(aten.narrow.default, lambda x: aten.narrow.default(x, -1, -3, 3), [(2, 7)], "a b+c -> a c"),
    Row(aten.narrow.default, lambda x: aten.narrow.default(x, 0, 0, 5), [(5, 7)], "a b -> a b"),
    Row(aten.select.int, lambda x: aten.select.int(x, 1, 3), [(2, 7, 3)], "a b+1+c d -> a d"),
    Row(aten.select.int, lambda x: aten.select.int(x, -1, -1), [(3, 7)], "a b+1 -> a"),
    Row(aten.select.int, lambda x: aten.select.int(x, 0, 0), [(1, 7)], "1 a -> a"),
    Row(aten.unbind.int, lambda x: aten.unbind.int(x, 1), [(5, 3, 7)], "a 1+1+1 b -> a b, a b, a b"),
    Row(aten.unbind.int, lambda x: aten.unbind.int(x, -1), [(5, 2)], "a 1+1 -> a, a"),
    Row(aten.split.Tensor, lambda x: aten.split.Tensor(x, 5, -1), [(2, 15)], "a b+c+d -> a b, a c, a d"),
    Row(aten.split.Tensor, lambda x: aten.split.Tensor(x, 3, 0), [(7, 2)], "a+b+1 c -> a c, b c, 1 c"),
    Row(aten.split.sizes, lambda x: aten.split.sizes(x, [2, 5], 1), [(3, 7)], "a b+c -> a b, a c"),
    Row(
        aten.split_with_sizes.default,
        lambda x: aten.split_with_sizes.default(x, [3, 0, 2, 2], -1),
        [(3, 7)],
        "a b+c+d -> a b, a 0, a c, a d",
    ),
    Row(aten.chunk.default, lambda x: aten.chunk.default(x, 2, -1), [(3, 10)], "a b+c -> a b, a c"),
    Row(aten.chunk.default, lambda x: aten.chunk.default(x, 3, 1), [(2, 7)], "a b+c+1 -> a b, a c, a 1"),
    Row(aten.chunk.default, lambda x: aten.chunk.default(x, 1, 1), [(2, 7)], "a b -> a b"),
    Row(
        aten.chunk.default,  # a fused gate and up projection
        lambda x: aten.mul.Tensor(*aten.chunk.default(x, 2, -1)),
        [(3, 10)],
        "a b+b -> a b",
    ),
    Row(
        aten.tensor_split.sections, lambda x: aten.tensor_split.sections(x, 3, -1), [(2, 7)], "a b+c+d -> a b, a c, a d"
    ),
    Row(
        aten.tensor_split.indices,
        lambda x: aten.tensor_split.indices(x, [2, -2], 1),
        [(3, 7)],
        "a b+c+d -> a b, a c, a d",
    ),
    Row(
        aten.split_with_sizes.default,  # kv · (group + 1 + 1) · d
        lambda x: aten.split_with_sizes.default(aten.view.default(x, [x.shape[0], 3, -1, 2]), [5, 1, 1], 2),
        [(2, 42)],
        "a b·(c+1+1)·d -> a b c d, a b 1 d, a b 1 d",
    ),
    Row(
        aten.split_with_sizes.default,  # kv·group·d + kv·d + kv·d, taken apart before it is known to be made of heads
        lambda x: [
            aten.view.default(part, [x.shape[0], 3, -1, 2]) for part in aten.split_with_sizes.default(x, [30, 6, 6], 1)
        ],
        [(5, 42)],
        "a b·c·d+e·f+g·h -> a b c d, a e 1 f, a g 1 h",
    ),
    Row(aten.cat.default, lambda *xs: aten.cat.default(xs, -1), [(3, 5), (3, 7)], "a b, a c -> a b+c"),
    Row(aten.cat.default, lambda *xs: aten.cat.default(xs), [(2, 5), (3, 5), (1, 5)], "a b, c b, 1 b -> a+c+1 b"),
    Row(aten.cat.default, lambda *xs: aten.cat.default(xs, 1), [(0,), (3, 5)], "0, a b -> a b"),
    Row(aten.cat.default, lambda x: aten.cat.default([x, x], 1), [(3, 5)], "a b -> a b+b"),
    Row(aten.concat.default, lambda *xs: aten.concat.default(xs, 1), [(3, 5), (3, 7)], "a b, a c -> a b+c"),
    Row(aten.concatenate.default, lambda *xs: aten.concatenate.default(xs, 0), [(3, 5), (2, 5)], "a b, c b -> a+c b"),
    Row(
        aten.cat.default,  # undone by the next cut
        lambda x, y: aten.split.sizes(aten.cat.default([x, y], 1), [5, 7], 1),
        [(3, 5), (3, 7)],
        "a b, a c -> a b, a c",
    ),
    Row(aten.glu.default, aten.glu.default, [(3, 10)], "a b+b -> a b", "close"),
    Row(aten.glu.default, lambda x: aten.glu.default(x, 0), [(6, 5)], "a+a b -> a b", "close"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(cuts) == {row.op for row in ROWS}


@pytest.mark.parametrize("op", sorted(rules_of(cuts) & RESIZERS.keys(), key=str), ids=str)
def test_positions_are_computed_again(op):
    assert op in set().union(*(check(row) for row in ROWS if row.op is op))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (heads_then(aten.slice.Tensor, 1, 0, 4), "slice_tensor = slice.Tensor"),
        (heads_then(aten.select.int, 1, 5), "select_int = select.int"),
        (heads_then(aten.narrow.default, 1, 3, 5), "narrow_default = narrow.default"),
        (heads_then(aten.split.Tensor, 4, 1), "split_tensor = split.Tensor"),
        (heads_then(aten.unbind.int, 1), "unbind_int = unbind.int"),
    ],
)
def test_a_cut_through_the_middle_of_a_unit_is_refused_by_name(function, name):
    assert reasons(function, [(2, 3, 5)]) == {f"cut through the middle of a unit at {name}"}


def test_a_step_that_does_not_fit_is_refused_by_name():
    assert reasons(slices(1, 0, END, 2), [(3, 7)]) == {"one unit in 2 is taken at slice_tensor = slice.Tensor"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x[:, : y.shape[0]],
        lambda x, y: y[:-1] + x.sum(),
        lambda x, y: y[2:] + x.sum(),
        lambda x, y: y[-1] + x.sum(),
        lambda x, y: y.narrow(0, 1, y.shape[0] - 2) + x.sum(),
        lambda x, y: y.narrow(0, 1, 2) + x.sum(),
        lambda x, y: y.split(2, 0)[0] + x.sum(),
        lambda x, y: x[0, y.shape[0]],
    ],
    ids=["slice", "slice before the end", "slice from 2", "last", "narrow", "narrow from 1", "split", "select"],
)
def test_dynamic_positions_are_refused_and_leave_no_static_axis(function):
    """`y` has a size that is open; no part of it may pass for one that is fixed."""

    class Layer(torch.nn.Module):
        def forward(self, x, y):
            return x, function(x, y)

    shapes = ({}, {0: Dim.AUTO})
    gm = export(Layer(), (torch.ones(3, 30), torch.ones(7)), dynamic_shapes=shapes, strict=False).graph_module
    graph = gm.graph
    graph.output_node().args = ((graph.output_node().args[0][0],),)
    axes = Walk(gm, tags.Interface("x", (), ())).run()
    reason = [r for found in axes.pins.values() for r in found if "dynamic position" in r]
    assert reason
    for dims in axes.dims.values():
        for dim in dims:
            for axis in dim.axes():
                assert axis.dynamic or axis in axes.pins or axis.size < 2, (axis, axes)


# -- any chain of cuts and sums ----------------------------------------------------------------------------------------


@st.composite
def programs(draw):
    """Steps on a [2·2·3·5, 7] tensor: each views, cuts, puts together or turns what the one before gave."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["split", "merge", "turn", "halve", "cut", "double", "spread", "rotate"]),
                st.integers(0, 7),
                st.integers(0, 7),
            ),
            min_size=1,
            max_size=7,
        )
    )


def run_program(x, steps):
    for kind, at, how in steps:
        at %= x.ndim
        size = x.shape[at]
        divisors = [n for n in (2, 3, 5) if size % n == 0]
        match kind:
            case "split" if divisors and x.ndim < 5:
                minor = divisors[how % len(divisors)]
                x = aten.reshape.default(x, [*x.shape[:at], size // minor, minor, *x.shape[at + 1 :]])
            case "merge" if at + 1 < x.ndim:
                x = aten.reshape.default(x, [*x.shape[:at], -1, *x.shape[at + 2 :]])
            case "turn":
                x = aten.transpose.int(x, at, how % x.ndim)
            case "halve" if size % 2 == 0:
                x = aten.sub.Tensor(*aten.chunk.default(x, 2, at))
            case "cut" if size > 2:
                start = how % (size - 1)
                x = aten.slice.Tensor(x, at, start, start + 1 + size // 2)
            case "double" if x.numel() < 1000:
                x = aten.cat.default([x, aten.neg.default(x)], at - x.ndim)
            case "spread" if x.numel() < 1000:
                x = aten.repeat_interleave.self_int(x, 2, at)
            case "rotate" if x.numel() < 1000:
                x = aten.repeat.default(x, [2 if i == at else 1 for i in range(x.ndim)])
    return x


@settings(max_examples=120, deadline=None)
@given(programs())
def test_any_chain_of_views_and_cuts(steps):
    rng = np.random.default_rng(len(steps))
    recorded = record(lambda x: aten.alias.default(run_program(x, steps)), make_inputs([(60, 7)], rng))
    axes = walk(recorded)
    check_narrowing(recorded, axes, lambda x: x, rng)
