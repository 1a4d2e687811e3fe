from itertools import pairwise

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from estfx.axes.algebra import Algebra
from estfx.graphs.dimensions import Axis, Product, Sum, coarse, extent_of

A, B, C, D = (Axis(i, size) for i, size in enumerate((2, 3, 5, 7)))


def atoms(algebra, *sizes):
    return [algebra.fresh(size) for size in sizes]


def sizes_of(algebra, ref):
    return [axis.size for axis in algebra.resolve(ref).axes()]


# -- expressions -------------------------------------------------------------------------------------------------------


def test_sizes_and_texts():
    dim = Product((Sum((A, Product((B, C)))), D))
    assert dim.size == (2 + 3 * 5) * 7
    assert str(dim) == "(a0:2 + a1:3·a2:5)·a3:7"
    assert list(dim.axes()) == [A, B, C, D]
    assert dim.narrowed_size({B: 1, D: 4}) == (2 + 1 * 5) * 4


def test_positions_of_kept_units():
    keep = {A: np.array([1]), C: np.array([0, 3])}
    assert A.flat_index(keep).tolist() == [1]
    assert B.flat_index(keep).tolist() == [0, 1, 2]
    assert Product((B, C)).flat_index(keep).tolist() == [0, 3, 5, 8, 10, 13]
    assert Sum((A, C, B)).flat_index(keep).tolist() == [1, 2, 5, 7, 8, 9]


def test_positions_for_many_layers_at_once():
    keep = {A: np.array([[0], [1], [1]]), C: np.array([[0, 3], [1, 2], [2, 4]])}
    dim = Sum((Product((A, B)), C, D))
    for layer, row in enumerate(dim.flat_index(keep)):
        alone = {axis: units[layer] for axis, units in keep.items()}
        assert row.tolist() == dim.flat_index(alone).tolist()


def test_offsets_move_with_what_lies_before_them():
    dim = Sum((Product((A, C)), Product((B, C))))
    assert [dim.offset(p, {C: 2}) for p in (0, 5, 10, 15, 20, 25)] == [0, 2, 4, 6, 8, 10]
    assert [dim.offset(p, {A: 1}) for p in (0, 10, 13, 25)] == [0, 5, 8, 20]


def test_an_offset_inside_a_narrowed_axis_is_an_error():
    with pytest.raises(ValueError, match=r"position 3 lies inside the narrowed axis a2:5"):
        Sum((A, C)).offset(5, {C: 2})
    with pytest.raises(ValueError, match=r"position 6 lies outside of a0:2 \+ a1:3"):
        Sum((A, B)).offset(6, {})


def test_coarse_merges_all_but_the_fine_axes():
    assert coarse(Product((A, B, C)), {B}) == Product((Axis(-1, 2), B, Axis(-1, 5)))
    assert coarse(Product((A, B, C, D)), {D}) == Product((Axis(-1, 30), D))
    assert coarse(Sum((A, B, C)), {C}) == Sum((Axis(-1, 5), C))
    assert coarse(Sum((A, Product((B, C)))), {A}) == Sum((A, Axis(-1, 15)))
    assert coarse(Product((A, B)), ()) == Axis(-1, 6)
    assert coarse(A, {A}) == A


# -- the workbench -----------------------------------------------------------------------------------------------------


def test_unifying_splits_the_larger_axis():
    algebra = Algebra()
    (whole,) = atoms(algebra, 30)
    parts = atoms(algebra, 2, 3, 5)
    assert algebra.unify(algebra.product(parts), whole)
    assert algebra.resolve(whole) == Product(tuple(map(algebra.resolve, parts)))


def test_unifying_splits_both_sides():
    algebra = Algebra()
    a, b, c, d = atoms(algebra, 4, 15, 12, 5)
    assert algebra.unify(algebra.product([a, b]), algebra.product([c, d]))
    assert [sizes_of(algebra, ref) for ref in (a, b, c, d)] == [[4], [3, 5], [4, 3], [5]]
    assert sizes_of(algebra, a) + sizes_of(algebra, b) == sizes_of(algebra, c) + sizes_of(algebra, d)


def test_unifying_passes_through_what_was_unified_before():
    algebra = Algebra()
    a, b, c, d = atoms(algebra, 6, 6, 6, 3)
    assert algebra.unify(a, b)
    assert algebra.unify(b, c)
    assert algebra.split_minor(a, 3) is not None
    assert algebra.resolve(c) == algebra.resolve(a)
    assert algebra.unify(d, algebra.factors(c)[1])
    assert list(algebra.resolve(b).axes())[1] == algebra.resolve(d)


def test_a_size_of_one_is_no_factor_and_a_size_of_zero_no_term():
    algebra = Algebra()
    one, a, zero = atoms(algebra, 1, 7, 0)
    assert algebra.product([one, a, one]) == a
    assert algebra.sum([zero, a, zero]) == a
    assert algebra.size(algebra.product([])) == 1
    assert algebra.size(algebra.sum([])) == 0


def test_a_dimension_of_size_zero_resolves():
    algebra = Algebra()
    zero, a = atoms(algebra, 0, 5)
    assert algebra.unify(zero, algebra.product([zero, a]))
    assert algebra.resolve(zero).size == 0


@pytest.mark.parametrize(("left", "right"), [((4, 9), (6, 6)), ((2, 3), (3, 2)), ((10, 6), (4, 15))])
def test_sizes_without_a_common_refinement_do_not_unify(left, right):
    algebra = Algebra()
    assert not algebra.unify(algebra.product(atoms(algebra, *left)), algebra.product(atoms(algebra, *right)))


def test_dimensions_of_other_sizes_do_not_unify():
    algebra = Algebra()
    assert not algebra.unify(*atoms(algebra, 6, 7))


def test_splitting():
    algebra = Algebra()
    (whole,) = atoms(algebra, 30)
    major, minor = algebra.split_minor(whole, 5)
    assert (algebra.size(major), algebra.size(minor)) == (6, 5)
    assert algebra.split_minor(whole, 7) is None
    assert algebra.split_minor(whole, 6) is None  # 5 does not divide it, nor it 5
    assert [algebra.size(ref) for ref in algebra.split_minor(whole, 10)] == [3, 10]
    assert sizes_of(algebra, whole) == [3, 2, 5]
    assert [algebra.size(ref) for ref in algebra.split_minor(whole, 1)] == [30, 1]
    assert [algebra.size(ref) for ref in algebra.split_minor(whole, 30)] == [1, 30]


def test_splitting_a_sum_makes_its_terms_multiples_of_one_unit():
    algebra = Algebra()
    (whole,) = atoms(algebra, 42)
    q, k, v = algebra.cut(whole, [30, 6, 6])
    major, minor = algebra.split_minor(whole, 2)
    assert sizes_of(algebra, major) == [15, 3, 3]
    for part in (q, k, v):
        assert list(algebra.resolve(part).axes())[-1] == algebra.resolve(minor)
    assert algebra.split_minor(whole, 4) is None


def test_cutting():
    algebra = Algebra()
    (whole,) = atoms(algebra, 10)
    parts = algebra.cut(whole, [2, 3, 5])
    assert algebra.resolve(whole) == Sum(tuple(map(algebra.resolve, parts)))
    across = algebra.cut(whole, [4, 6])  # refines the second part
    assert sizes_of(algebra, whole) == [2, 2, 1, 5]
    assert [sizes_of(algebra, part) for part in across] == [[2, 2], [1, 5]]
    assert [algebra.size(part) for part in algebra.cut(whole, [0, 10, 0])] == [0, 10, 0]


def test_cutting_a_product_cuts_its_major_factor():
    algebra = Algebra()
    heads, size = atoms(algebra, 6, 4)
    left, right = algebra.cut(algebra.product([heads, size]), [8, 16])
    assert algebra.factors(left)[-1] == algebra.factors(right)[-1] == algebra.find(size)
    assert sizes_of(algebra, heads) == [2, 4]
    assert algebra.cut(algebra.product([heads, size]), [6, 18]) is None


def test_a_fused_projection_is_found_whichever_way_it_is_taken_apart():
    algebra = Algebra()
    (rows,) = atoms(algebra, 3 * (5 + 1 + 1) * 2)
    heads, packed, size = atoms(algebra, 3, 7, 2)
    assert algebra.unify(rows, algebra.product([heads, packed, size]))
    assert algebra.cut(packed, [5, 1, 1]) is not None
    assert str(algebra.resolve(rows)).replace(str(algebra.resolve(heads)), "kv").count("kv") == 1
    assert [axis.size for axis in algebra.resolve(rows).axes()] == [3, 5, 1, 1, 2]


def test_sums_that_were_unified_are_split_as_one():
    algebra = Algebra()
    one, other = (algebra.sum(atoms(algebra, 6, 4)) for _ in range(2))
    assert algebra.unify(one, other)
    for side in (one, other):
        assert algebra.split_minor(side, 2) is not None
        assert algebra.resolve(one) == algebra.resolve(other)
        assert str(algebra.resolve(one)).count(":2") == 2


def test_no_factor_of_a_product_is_a_product_also_after_one_was_split():
    algebra = Algebra()
    left, right = atoms(algebra, 6, 5)
    whole = algebra.product([left, right])
    algebra.split_minor(left, 3)
    assert [type(factor) for factor in algebra.resolve(whole).factors] == [Axis] * 3
    assert [algebra.size(factor) for factor in algebra.factors(whole)] == [2, 3, 5]


def test_a_dimension_without_elements_holds_no_axes():
    algebra = Algebra()
    heads, none = atoms(algebra, 5, 0)
    algebra.pin(algebra.product([heads, none]), "it is empty")
    assert [axis.size for axis in algebra.pins()] == [0]


def test_sums_unify_term_by_term():
    algebra = Algebra()
    a, b = atoms(algebra, 10, 10)
    algebra.cut(a, [4, 6])
    algebra.cut(b, [7, 3])
    assert algebra.unify(a, b)
    assert sizes_of(algebra, a) == [4, 3, 3]
    assert algebra.resolve(a) == algebra.resolve(b)


def test_a_sum_of_products_is_a_product_with_a_sum():
    algebra = Algebra()
    q, k, d = atoms(algebra, 5, 2, 3)
    spread = algebra.sum([algebra.product([q, d]), algebra.product([k, d])])
    heads, size = atoms(algebra, 7, 3)
    assert algebra.unify(spread, algebra.product([heads, size]))
    assert algebra.resolve(heads) == Sum((algebra.resolve(q), algebra.resolve(k)))
    assert algebra.resolve(size) == algebra.resolve(d)


def test_pins_follow_later_refinement():
    algebra = Algebra()
    whole, other = atoms(algebra, 30, 7)
    algebra.pin(whole, "a reason")
    algebra.pin(whole, "another")
    algebra.pin(whole, "a reason")
    algebra.split_minor(whole, 5)
    algebra.cut(algebra.factors(whole)[0], [2, 4])
    assert algebra.pins() == dict.fromkeys(algebra.resolve(whole).axes(), ("a reason", "another"))
    assert algebra.resolve(other) not in algebra.pins()


# -- open sizes --------------------------------------------------------------------------------------------------------


def open_sizes(*values):
    """Sizes as the walk meets them: a value for the example inputs, and a symbol."""
    shape_env = ShapeEnv()
    sources = [ConstantSource(f"size_{i}") for i in range(len(values))]
    symbols = [shape_env.create_symbol(v, s, DimDynamic.DYNAMIC) for v, s in zip(values, sources, strict=True)]
    return [shape_env.create_symintnode(x, hint=v, source=s) for x, v, s in zip(symbols, values, sources, strict=True)]


def dynamic(algebra, ref):
    return [axis.dynamic for axis in algebra.resolve(ref).axes()]


def test_an_extent_is_a_value_and_its_exact_form():
    value, exact = extent_of(open_sizes(7)[0])
    assert value == 7
    assert isinstance(exact, sympy.Expr)
    assert extent_of(12) == (12, 12)


def test_a_part_of_an_open_dimension_is_open_and_the_static_part_is_not():
    algebra = Algebra()
    (size,) = open_sizes(7)
    flat, tokens, heads = (algebra.fresh(s) for s in (size * 12, size, 12))
    assert dynamic(algebra, flat) == [True]
    assert algebra.unify(flat, algebra.product([tokens, heads]))
    assert dynamic(algebra, flat) == [True, False]


def test_an_open_factor_stays_open_where_a_product_of_more_is_split():
    algebra = Algebra()
    batch, tokens = open_sizes(3, 7)
    flat, width = algebra.fresh(batch * tokens), algebra.fresh(16)
    assert algebra.split_minor(algebra.product([flat, width]), 7 * 16, extent_of(tokens * 16)[1]) is not None
    assert sizes_of(algebra, flat) == [3, 7]
    assert dynamic(algebra, flat) == [True, True]


@pytest.mark.parametrize("turn", [1, -1])
def test_a_dimension_that_is_static_anywhere_is_static(turn):
    algebra = Algebra()
    a, b = map(algebra.fresh, [open_sizes(7)[0], 7][::turn])
    assert algebra.unify(a, b)
    assert dynamic(algebra, a) == dynamic(algebra, b) == [False]


# -- against brute force -----------------------------------------------------------------------------------------------


def refinement(*splits):
    """The sizes between all ends, in order: what dimensions with parts of those sizes are made of."""
    ends = sorted(set().union(*(np.cumsum(s).tolist() for s in splits)) | {0})
    return np.diff(ends).tolist()


def common_factors(*splits):
    """The same for products; None if some do not divide each other."""
    ends = sorted(set().union(*(np.cumprod(s[::-1]).tolist() for s in splits)) | {1})
    if any(b % a for a, b in pairwise(ends)):
        return None
    return [b // a for a, b in pairwise(ends)][::-1]


factors = st.lists(st.sampled_from([1, 2, 2, 3, 4, 5, 6]), min_size=1, max_size=4)


@given(factors, factors)
def test_products_unify_where_a_common_refinement_exists(left, right):
    right.append(int(np.prod(left)))
    left = [*left, int(np.prod(right[:-1]))]  # equal sizes, whatever was drawn
    algebra = Algebra()
    a, b = (algebra.product(atoms(algebra, *sizes)) for sizes in (left, right))
    want = common_factors(left, right)
    assert algebra.unify(a, b) == (want is not None)
    if want is not None:
        assert algebra.resolve(a) == algebra.resolve(b)
        assert [size for size in sizes_of(algebra, a) if size > 1] == want


@given(st.integers(1, 20), st.data())
def test_cuts_meet_in_their_common_refinement(size, data):
    def split():
        ends = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
        return np.diff([0, *ends, size]).tolist()

    algebra = Algebra()
    a, b = atoms(algebra, size, size)
    splits = [split(), split(), split()]
    for ref, parts in zip((a, a, b), splits, strict=True):
        assert [algebra.size(part) for part in algebra.cut(ref, parts)] == parts
    assert algebra.unify(a, b)
    assert algebra.resolve(a) == algebra.resolve(b)
    assert sizes_of(algebra, a) == refinement(*splits)


class Claims:
    """What the algebra has said, kept as sentences about which positions are kept, in plain numpy."""

    def __init__(self, data):
        self.data = data
        self.algebra = Algebra()
        self.refs = []
        self.equal = []  # (two functions from a mask for each reference to a mask)
        self.positions = []  # (ref, position): a cut that may be asked for again

    def pick(self):
        return self.data.draw(st.sampled_from(self.refs))

    def add(self, ref):
        self.refs.append(ref)
        return ref

    def step(self):
        algebra, draw = self.algebra, self.data.draw
        match draw(
            st.sampled_from(["fresh", "product", "sum", "split", "split", "cut", "cut", "unify", "unify", "twin"])
        ):
            case "fresh":
                self.add(algebra.fresh(draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 12, 30]))))
            case "product":
                parts = [self.pick() for _ in range(draw(st.integers(0, 3)))]
                if np.prod([algebra.size(p) for p in parts], dtype=int) <= 200:
                    whole = self.add(algebra.product(parts))
                    self.claim(whole, lambda m: outer([m[p] for p in parts]))
            case "sum":
                parts = [self.pick() for _ in range(draw(st.integers(0, 3)))]
                if sum(algebra.size(p) for p in parts) <= 200:
                    whole = self.add(algebra.sum(parts))
                    self.claim(whole, lambda m: concatenated([m[p] for p in parts]))
            case "split":
                whole = self.pick()
                minor = draw(st.sampled_from([1, 2, 3, 4, 5, 6]))
                pair = algebra.split_minor(whole, minor)
                if pair is None:
                    assert algebra.size(whole) % minor or len(sizes_of(algebra, whole)) > 1
                else:
                    assert algebra.size(pair[1]) == minor
                    pair = [self.add(ref) for ref in pair]
                    self.claim(whole, lambda m: outer([m[p] for p in pair]))
            case "cut":
                whole = self.pick()
                at = draw(st.integers(0, algebra.size(whole)))
                parts = algebra.cut(whole, [at, algebra.size(whole) - at])
                if parts is None:
                    assert len(sizes_of(algebra, whole)) > 1
                else:
                    assert algebra.size(parts[0]) == at
                    parts = [self.add(ref) for ref in parts]
                    self.claim(whole, lambda m: concatenated([m[p] for p in parts]))
                    self.positions.append((whole, at))
            case "unify":
                a = self.pick()
                b = draw(st.sampled_from([ref for ref in self.refs if algebra.size(ref) == algebra.size(a)]))
                if algebra.unify(a, b):
                    self.claim(a, lambda m: m[b])
                    assert algebra.resolve(a) == algebra.resolve(b) or not algebra.size(a)
            case "twin":  # of the same size, and unified later if it is drawn
                self.add(algebra.fresh(algebra.size(self.pick())))

    def claim(self, ref, mask):
        self.equal.append((ref, mask))

    def check(self):
        algebra, draw = self.algebra, self.data.draw
        dims = {ref: algebra.resolve(ref) for ref in self.refs}
        axes = list(dict.fromkeys(axis for dim in dims.values() for axis in dim.axes()))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        units = {}
        for axis in axes:
            if axis.size > 1 and rng.random() < 0.7:
                units[axis] = np.sort(rng.choice(axis.size, rng.integers(1, axis.size), replace=False))
        kept = {axis: len(chosen) for axis, chosen in units.items()}
        masks = {}
        for ref, dim in dims.items():
            assert dim.size == algebra.size(ref)
            index = dim.flat_index(units)
            assert (np.diff(index) > 0).all()
            masks[ref] = np.zeros(dim.size, dtype=bool)
            masks[ref][index] = True
            assert dim.narrowed_size(kept) == masks[ref].sum() == len(index)
            same = coarse(dim, units)
            assert (same.flat_index(units) == index).all()
            assert all(axis in units or axis.id == -1 for axis in same.axes())
        for ref, mask in self.equal:
            assert (masks[ref] == mask(masks)).all()
        for ref, at in self.positions:
            assert dims[ref].offset(at, kept) == masks[ref][:at].sum()


def outer(masks):
    whole = np.ones(1, dtype=bool)
    for mask in masks:
        whole = np.logical_and.outer(whole, mask).ravel()
    return whole


def concatenated(masks):
    return np.concatenate([np.zeros(0, dtype=bool), *masks])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_was_claimed_holds_for_any_kept_units(data):
    """Also after later steps have refined what was claimed before, and where a step has failed in the middle."""
    claims = Claims(data)
    claims.add(claims.algebra.fresh(60))
    claims.add(claims.algebra.fresh(60))
    for _ in range(data.draw(st.integers(1, 14))):
        claims.step()
    claims.check()


@st.composite
def views(draw):
    """Shapes that the same elements are seen in one after the other, each cut or split as well."""
    return draw(
        st.lists(st.sampled_from([(60,), (4, 15), (12, 5), (2, 30), (2, 2, 15), (4, 3, 5), (6, 10)]), max_size=4)
    )


@given(views(), st.data())
def test_a_chain_of_views_keeps_the_same_elements(shapes, data):
    """The kept positions of each view, of index arrays that numpy really reshapes, are the same elements."""
    algebra = Algebra()
    whole = algebra.fresh(60)
    seen = []
    for shape in shapes:
        refs = atoms(algebra, *shape)
        if algebra.unify(whole, algebra.product(refs)):
            seen.append((shape, refs))
    assume(seen)
    dim = algebra.resolve(whole)
    units = {
        axis: np.array(sorted(data.draw(st.sets(st.integers(0, axis.size - 1), min_size=1)))) for axis in dim.axes()
    }
    elements = dim.flat_index(units)
    for shape, refs in seen:
        indices = [algebra.resolve(ref).flat_index(units) for ref in refs]
        assert np.arange(60).reshape(shape)[np.ix_(*indices)].ravel().tolist() == elements.tolist()
