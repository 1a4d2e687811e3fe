"""Variants of a kind: the units that are drawn mean the same in each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from estfx.graphs import Axis, tags
from estfx.programs import Kind


def roles(*found: tuple[str, Axis]) -> tags.Roles:
    return tags.Roles(tuple(tags.Role(name, axis) for name, axis in found))


def test_of_roles_of_one_size_that_of_the_same_name_is_the_same() -> None:
    one, two, heads = Axis(1, 24), Axis(2, 24), Axis(3, 24)
    kind: Any = SimpleNamespace(
        first=SimpleNamespace(roles=roles(("heads", heads), ("neurons", one), ("neurons_2", two)))
    )
    found = roles(("neurons_2", Axis(7, 24)), ("neurons", Axis(8, 24)), ("heads", Axis(9, 24)))
    made: Any = SimpleNamespace(roles=found, traced=SimpleNamespace(graph=SimpleNamespace(meta={})))
    Kind._same_roles(kind, made, frozenset())
    assert [(role.name, role.axis.id) for role in made.roles.found] == [("heads", 9), ("neurons", 8), ("neurons_2", 7)]
    assert tags.get(made.traced.graph, tags.Roles) is made.roles
