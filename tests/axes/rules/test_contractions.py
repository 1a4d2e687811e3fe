import numpy as np
import pytest
import torch
from brute_force import Row, check, check_narrowing, make_inputs, narrowable, reasons, record, rules_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from estfx.axes.rules import contractions
from estfx.axes.walk import Walk
from estfx.graphs import tags

aten = torch.ops.aten


def einsum(equation):
    return lambda *tensors: aten.einsum.default(equation, list(tensors))


ROWS = [
    Row(aten.linear.default, aten.linear.default, [(2, 3, 5), (7, 5)], "a b Σc, d Σc -> a b d"),
    Row(aten.linear.default, aten.linear.default, [(3, 5), (7, 5), (7,)], "a Σb, c Σb, c -> a c"),
    Row(aten.linear.default, aten.linear.default, [(5,), (7, 5)], "Σa, b Σa -> b"),
    Row(aten.linear.default, aten.linear.default, [(3, 5), (5,)], "a Σb, Σb -> a"),
    Row(
        aten.linear.default,  # a whole gated MLP
        lambda x, g, u, d: aten.linear.default(
            aten.mul.Tensor(aten.relu.default(aten.linear.default(x, g)), aten.linear.default(x, u)), d
        ),
        [(3, 5), (7, 5), (7, 5), (5, 7)],
        "a Σb, Σc Σb, Σc Σb, d Σc -> a d",
    ),
    Row(aten.mm.default, aten.mm.default, [(3, 5), (5, 7)], "a Σb, Σb c -> a c"),
    Row(aten.bmm.default, aten.bmm.default, [(2, 3, 5), (2, 5, 7)], "a b Σc, a Σc d -> a b d"),
    Row(aten.bmm.default, aten.bmm.default, [(1, 3, 5), (1, 5, 7)], "1 a Σb, 1 Σb c -> 1 a c"),
    Row(aten.matmul.default, aten.matmul.default, [(3, 5), (5, 7)], "a Σb, Σb c -> a c"),
    Row(aten.matmul.default, aten.matmul.default, [(5,), (5,)], "Σa, Σa -> ()"),
    Row(aten.matmul.default, aten.matmul.default, [(5,), (5, 7)], "Σa, Σa b -> b"),
    Row(aten.matmul.default, aten.matmul.default, [(3, 5), (5,)], "a Σb, Σb -> a"),
    Row(aten.matmul.default, aten.matmul.default, [(5,), (2, 5, 7)], "Σa, b Σa c -> b c"),
    Row(aten.matmul.default, aten.matmul.default, [(2, 3, 5), (5,)], "a b Σc, Σc -> a b"),
    Row(aten.matmul.default, aten.matmul.default, [(2, 3, 5), (5, 7)], "a b Σc, Σc d -> a b d"),
    Row(aten.matmul.default, aten.matmul.default, [(3, 5), (2, 5, 7)], "a Σb, c Σb d -> c a d"),
    Row(aten.matmul.default, aten.matmul.default, [(2, 3, 5, 7), (3, 7, 2)], "a b c Σd, b Σd e -> a b c e"),
    Row(aten.matmul.default, aten.matmul.default, [(2, 1, 5, 7), (1, 3, 7, 2)], "a 1 b Σc, 1 d Σc e -> a d b e"),
    Row(aten.matmul.default, aten.matmul.default, [(3, 5, 1), (3, 1, 7)], "a b 1, a 1 c -> a b c"),
    Row(
        aten.matmul.default,  # over heads · head_dim at once
        lambda x, w: aten.matmul.default(aten.view.default(x, [x.shape[0], -1]), w),
        [(2, 3, 5), (15, 7)],
        "a Σb Σc, Σb·Σc d -> a d",
    ),
    Row(aten.addmm.default, aten.addmm.default, [(7,), (3, 5), (5, 7)], "a, b Σc, Σc a -> b a"),
    Row(aten.addmm.default, aten.addmm.default, [(3, 7), (3, 5), (5, 7)], "a b, a Σc, Σc b -> a b"),
    Row(aten.addmm.default, aten.addmm.default, [(3, 1), (3, 5), (5, 7)], "a 1, a Σb, Σb c -> a c"),
    Row(aten.addmm.default, aten.addmm.default, [(1, 7), (1, 5), (5, 7)], "1 a, 1 Σb, Σb a -> 1 a"),
    Row(
        aten.addmm.default,
        lambda b, x, w: aten.addmm.default(b, x, w, beta=2, alpha=0.5),
        [(7,), (3, 5), (5, 7)],
        "a, b Σc, Σc a -> b a",
    ),
    Row(aten.baddbmm.default, aten.baddbmm.default, [(7,), (2, 3, 5), (2, 5, 7)], "a, b c Σd, b Σd a -> b c a"),
    Row(
        aten.baddbmm.default, aten.baddbmm.default, [(2, 1, 7), (2, 3, 5), (2, 5, 7)], "a 1 b, a c Σd, a Σd b -> a c b"
    ),
    Row(
        aten.baddbmm.default, aten.baddbmm.default, [(2, 3, 7), (2, 3, 5), (2, 5, 7)], "a b c, a b Σd, a Σd c -> a b c"
    ),
    Row(aten.einsum.default, einsum("bthd,bshd->bhts"), [(2, 3, 5, 7), (2, 2, 5, 7)], "a b c Σd, a e c Σd -> a c b e"),
    Row(aten.einsum.default, einsum("ij, jk -> ki"), [(3, 5), (5, 7)], "a Σb, Σb c -> c a"),
    Row(aten.einsum.default, einsum("ij,ij->ij"), [(3, 5), (3, 5)], "a b, a b -> a b"),
    Row(aten.einsum.default, einsum("ij->ji"), [(3, 5)], "a b -> b a"),
    Row(aten.einsum.default, einsum("ij->i"), [(3, 5)], "a Σb -> a"),
    Row(aten.einsum.default, einsum("ii->i"), [(5, 5)], "a a -> a"),
    Row(aten.einsum.default, einsum("ii->"), [(5, 5)], "Σa Σa -> ()"),
    Row(aten.einsum.default, einsum("iij,j->i"), [(5, 5, 3), (3,)], "a a Σb, Σb -> a"),
    Row(aten.einsum.default, einsum("ij,jk,kl->il"), [(2, 3), (3, 5), (5, 7)], "a Σb, Σb Σc, Σc d -> a d"),
    Row(aten.einsum.default, einsum("ij,ij,ij->i"), [(2, 3)] * 3, "a Σb, a Σb, a Σb -> a"),
    Row(aten.einsum.default, einsum("ij,jk->ik"), [(3, 1), (5, 7)], "a 1, Σb c -> a c"),
    Row(aten.einsum.default, einsum("ij,jk->ik"), [(3, 5), (1, 7)], "a Σb, 1 c -> a c"),
    Row(aten.einsum.default, einsum("ij,ij->ij"), [(3, 1), (1, 5)], "a 1, 1 b -> a b"),
    Row(aten.einsum.default, einsum("i,j->ij"), [(3,), (5,)], "a, b -> a b"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(contractions) == {row.op for row in ROWS}


@pytest.mark.parametrize("equation", ["...ij,jk->...ik", "ij,jk"])
def test_an_equation_with_an_ellipsis_or_without_a_result_is_refused(equation):
    (reason,) = reasons(einsum(equation), [(3, 5), (5, 7)])
    assert reason.startswith(f"einsum with the equation {equation!r}")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_einsum(data):
    sizes = dict(zip("ijklm", data.draw(st.permutations([1, 2, 3, 5, 7])), strict=True))
    terms = data.draw(st.lists(st.text("ijklm", min_size=1, max_size=4), min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    result = "".join(data.draw(st.lists(st.sampled_from(used), unique=True)))
    function = einsum(f"{','.join(terms)}->{result}")
    rng = np.random.default_rng(0)
    recorded = record(function, make_inputs([tuple(sizes[letter] for letter in term) for term in terms], rng))
    axes = walk(recorded)
    assert not axes.pins.keys() & {a for n in recorded.inputs for dim in axes.dims[n.name] for a in dim.axes()}
    check_narrowing(recorded, axes, function, rng, "close")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_matmul(data):
    """Vectors, matrices and batches of them, with any part of the batch broadcast."""
    batch = [size for size in (2, 3) if data.draw(st.booleans())]
    shapes = []
    for inner in ((5, 7), (7, 4)):
        kept = batch[data.draw(st.integers(0, len(batch))) :]
        shapes.append((*(size if data.draw(st.booleans()) else 1 for size in kept), *inner))
    if data.draw(st.booleans()):
        shapes[0] = (7,)
    if data.draw(st.booleans()):
        shapes[1] = (7,)
    rng = np.random.default_rng(0)
    recorded = record(aten.matmul.default, make_inputs(shapes, rng))
    axes = walk(recorded)
    want = {size for shape in shapes for size in shape} - {1}
    assert {axis.size for axis in narrowable(axes)} == want  # all sizes differ: none is pinned, and equal ones are one
    assert len(narrowable(axes)) == len(want)
    check_narrowing(recorded, axes, aten.matmul.default, rng)


# -- which operand a contraction closes --------------------------------------------------------------------------------


def closing(function, inputs, stream):
    """The only closing of a graph whose stream is one of its inputs."""
    recorded = record(function, make_inputs(inputs, np.random.default_rng(0)))
    graph = recorded.gm.graph
    graph.output_node().args = ((recorded.inputs[stream],),)
    (found,) = Walk(recorded.gm, tags.Interface(f"x{stream}", (), ())).run().closings
    return found


@pytest.mark.parametrize(
    ("function", "inputs", "stream", "argument", "position"),
    [
        (aten.linear.default, [(3, 5), (7, 5)], 0, "input", -1),
        (aten.matmul.default, [(3, 5), (5, 7)], 0, "self", -1),
        (aten.matmul.default, [(3, 5), (5, 7)], 1, "other", -2),
        (aten.matmul.default, [(3, 5), (5,)], 1, "other", -1),
        (aten.bmm.default, [(2, 3, 5), (2, 5, 7)], 1, "mat2", -2),
        (aten.addmm.default, [(7,), (3, 5), (5, 7)], 1, "mat1", -1),
        (aten.addmm.default, [(7,), (3, 5), (5, 7)], 2, "mat2", -2),
        (aten.baddbmm.default, [(7,), (2, 3, 5), (2, 5, 7)], 2, "batch2", -2),
        (einsum("ij,jk->ik"), [(3, 5), (5, 7)], 0, "tensors[0]", 1),
        (einsum("ij,jk->ik"), [(3, 5), (5, 7)], 1, "tensors[1]", 0),
    ],
)
def test_the_operand_from_the_stream_closes(function, inputs, stream, argument, position):
    found = closing(function, inputs, stream)
    assert (found.argument, found.position, found.dim.size) == (argument, position, 5)
    assert not found.to_stream


def test_a_contraction_with_a_weight_as_wide_as_the_stream_leads_into_it():
    def function(x, up, down):
        return aten.add.Tensor(aten.linear.default(aten.silu.default(aten.linear.default(x, up)), down), x)

    first, second = _closings(function)
    assert (first.dim.size, first.to_stream) == (5, False)
    assert (second.dim.size, second.to_stream) == (7, True)


def test_a_contraction_leads_into_the_stream_through_another_with_nothing_but_what_is_linear_between():
    def function(x, up, down):
        scaled = aten.dropout.default(aten.linear.default(x, up), 0.1, False)
        return aten.add.Tensor(aten.linear.default(scaled, down), x)

    assert [closing.to_stream for closing in _closings(function)] == [True, True]


def test_a_contraction_that_is_also_read_otherwise_does_not_lead_into_the_stream():
    def function(x, up, down):
        inner = aten.linear.default(x, up)
        linear, other = aten.linear.default(inner, down), aten.linear.default(aten.relu.default(inner), down)
        return aten.add.Tensor(aten.add.Tensor(linear, other), x)

    assert [closing.to_stream for closing in _closings(function)] == [False, True, True]


def test_a_contraction_that_makes_a_weight_does_not_lead_into_the_stream():
    def function(x, up, left, right):
        inner = aten.relu.default(aten.linear.default(x, up))
        return aten.add.Tensor(aten.linear.default(inner, aten.mm.default(left, right)), x)

    found = _closings(function, (3, 5), (7, 5), (5, 4), (4, 7))
    assert [(closing.dim.size, closing.to_stream) for closing in found] == [(5, False), (4, False), (7, True)]


def _closings(function, *shapes):
    recorded = record(function, make_inputs(shapes or [(3, 5), (7, 5), (5, 7)], np.random.default_rng(0)))
    recorded.gm.graph.output_node().args = ((recorded.outputs[0],),)
    return Walk(recorded.gm, tags.Interface("x0", (), ())).run().closings
