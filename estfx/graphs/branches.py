"""Which part of a layer each node belongs to: one of its residual branches, or what lies between them."""

from __future__ import annotations

from torch.fx import GraphModule

from estfx.graphs import tags

__all__ = ["BRANCH", "branches_of"]

BRANCH = "residual branch"  # how the titles of branches begin


def branches_of(gm: GraphModule) -> list[tuple[str, tuple[str, ...]]]:
    """The parts of the graph, each with a title and its nodes in order; every node but inputs is in one of them.

    What a pass has put in, such as a gather of a weight, belongs to the part that alone reads it.
    """
    residuals = tags.get(gm, tags.Residuals, tags.Residuals((), False))
    part: dict[str, int] = {}  # of a node; 0 is what lies outside of all branches
    for number, join in enumerate(residuals.joins, start=1):
        for name in join.nodes - {join.join}:
            part.setdefault(name, number)
    inside = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    interface = gm.meta.get(tags.Interface.__qualname__)
    stream = interface.stream if interface is not None else None
    known = {name for join in residuals.joins for name in (join.fork, join.join)} | part.keys()
    for node in reversed(inside):
        readers = {part.get(user.name, 0) for user in node.users}
        sources = {source.name for source in node.all_input_nodes}
        if node.name not in known and len(readers) == 1 and sources and stream not in sources:
            part[node.name] = readers.pop()
    titles = {0: "around the branches" if residuals.joins else "the layer"}
    titles |= {number: _title(gm, number, part) for number in range(1, len(residuals.joins) + 1)}
    found = {number: tuple(node.name for node in inside if part.get(node.name, 0) == number) for number in titles}
    return [(titles[number], names) for number, names in found.items() if names]


def _title(gm: GraphModule, number: int, part: dict[str, int]) -> str:
    """A branch by what of it can be narrowed."""
    axes = gm.meta.get(tags.Axes.__qualname__)
    roles = tags.get(gm, tags.Roles, tags.Roles())
    own = [name for name, each in part.items() if each == number]
    here = {axis for name in own for dim in (axes.dims.get(name, ()) if axes else ()) for axis in dim.axes()}
    found = [role.name for role in roles.found if role.axis in here]
    return f"{BRANCH} {number}" + (f" ({', '.join(found)})" if found else "")
