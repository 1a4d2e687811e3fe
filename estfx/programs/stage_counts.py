"""How many units of each role the layers of a kind keep in a stage."""

from __future__ import annotations

from itertools import product

from estfx.graphs import tags
from estfx.programs.program import Counts
from estfx.schedules import Schedule, Stage, units_kept, widths_of_layers

__all__ = ["possible_counts", "stage_counts"]


def stage_counts(schedule: Schedule, roles: tags.Roles, stage: Stage) -> Counts:
    """How many units of each role a stage keeps, whole ones left out."""
    counts = ((role, units_kept(schedule, stage, role.name, role.axis.size)) for role in roles.found)
    return tuple(sorted((role.name, count) for role, count in counts if count < role.axis.size))


def possible_counts(schedule: Schedule, roles: tags.Roles, stage: Stage) -> set[Counts]:
    """How many units of each role layers may keep in a stage, which differs if layers are ranked together."""
    names = [role.name for role in roles.found]
    sizes = {role.name: role.axis.size for role in roles.found}
    each = product(*(widths_of_layers(schedule, stage, name, sizes[name]) for name in names))
    return {tuple(sorted((n, w) for n, w in zip(names, widths, strict=True) if w < sizes[n])) for widths in each}
