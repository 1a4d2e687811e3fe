"""Sizes that depend on the data: no two of them are mistaken for each other, or for a size that is known."""

from __future__ import annotations

from torch.fx.experimental.symbolic_shapes import ShapeEnv

from estfx.graphs import extent_of


def test_each_size_that_depends_on_the_data_has_a_value_of_its_own() -> None:
    shapes = ShapeEnv()
    one, other = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
    values = [extent_of(size)[0] for size in (one, other, one + other, 2 * one)]
    assert len(set(values)) == 4
    assert values[2] == values[0] + values[1]
    assert values[3] == 2 * values[0]
    assert min(values) > 1000
    assert extent_of(one) == extent_of(one)
