"""What one pass decides and another acts on: frozen plain data in `GraphModule.meta`, without nodes or tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch.fx import GraphModule

from estfx.graphs.dimensions import Axis, Dim

__all__ = [
    "Axes",
    "Branches",
    "Closing",
    "Core",
    "Gather",
    "Indices",
    "Interface",
    "Join",
    "Residuals",
    "Role",
    "Roles",
    "SeparateHeads",
    "fraction_of",
    "get",
    "operand_named",
    "put",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Interface:
    """What a layer graph takes and gives: placeholders stand in the order stream, sides, indices, weights."""

    stream: str  # placeholder of the residual stream
    sides: tuple[str, ...]  # placeholders of the other tensor arguments
    weights: tuple[tuple[str, str], ...]  # (placeholder, path of the parameter or buffer in the layer)
    outputs: int = 1  # values given; the first is the stream
    left: tuple[int, ...] = ()  # which of them the layer leaves beside its result, and nothing in the model reads
    added: bool = False  # all that is done with what it gives is to add it to a tensor


@dataclass(frozen=True)
class Join:
    """`join = skip + branch`, where `skip` leads back to `fork` through nothing but identities."""

    join: str
    fork: str
    skip: str
    branch: str
    nodes: frozenset[str]  # between fork and join


@dataclass(frozen=True)
class Residuals:
    joins: tuple[Join, ...]  # in the order of the graph
    droppable: bool
    reason: str = ""  # why not droppable
    outside: bool = False  # the layer is one branch, and its join lies outside of it


@dataclass(frozen=True)
class Closing:
    """A contraction that sums over a dimension: `argument` of `node` is the operand that depends on the stream."""

    node: str
    argument: str
    position: int  # which dimension of that operand
    dim: Dim
    to_stream: bool  # the result lies in the stream's hidden size


@dataclass(frozen=True)
class Branches:
    """Branches that compute the same of the same values, each with weights of its own, and are put side by side."""

    join: str  # what puts them side by side
    nodes: tuple[tuple[str, ...], ...]  # of each branch, in the order of the graph
    weights: tuple[tuple[str, ...], ...]  # for each weight or constant, those of all branches


@dataclass(frozen=True)
class SeparateHeads:
    found: tuple[Branches, ...] = ()


@dataclass(frozen=True)
class Core:
    """An attention core: the axes that it runs over in parallel, major to minor, and those of the values."""

    node: str
    batch: tuple[Axis, ...]
    shared: tuple[Axis, ...]  # those of `batch` that the values have too
    values: tuple[Axis, ...]


@dataclass(frozen=True)
class Axes:
    """The dimensions of every tensor in a graph, and what was learnt about their axes."""

    dims: Mapping[str, tuple[Dim, ...]]
    pins: Mapping[Axis, tuple[str, ...]]  # axes that must stay whole, and why
    closings: tuple[Closing, ...]
    coupled: Mapping[Axis, tuple[str, ...]]  # axes over which a statistic is taken, and where
    mixing: frozenset[str] = frozenset()  # operators that bring positions of the sequence together
    born: frozenset[str] = frozenset()  # weights that are computed whole, of which the kept units are taken

    def counting(self, branches: Branches) -> tuple[Axis, ...]:
        """The axes that count branches: of what puts them side by side, and of none of them."""
        inside = {axis for name in branches.nodes[0] for dim in self.dims.get(name, ()) for axis in dim.axes()}
        found = dict.fromkeys(axis for dim in self.dims[branches.join] for axis in dim.axes())
        return tuple(axis for axis in found if axis not in inside)

    def obstacle(self, axis: Axis, inner: bool = False) -> str:
        """Why an axis may not be made smaller, in words, or an empty string.

        With `inner`, contractions with weights may sum over it on other ways than the one into the stream.
        """
        if axis in self.pins:
            return self.pins[axis][0]
        if axis.dynamic:  # as a batch or a sequence is
            return "its size is not fixed"
        closings = [c for c in self.closings if axis in c.dim.axes()]
        if not closings:
            return "no contraction sums over it"
        if inner and any(c.to_stream for c in closings):
            closings = [c for c in closings if c.to_stream or c.node in self.mixing]
        if not all(c.to_stream for c in closings):
            return "a contraction that sums over it does not lead back into the residual stream"
        return ""


def operand_named(argument: str) -> tuple[str, int | None]:
    """An operand as a `Closing` names it, `input` or `tensors[1]`: the argument, and which of its items."""
    name, bracket, item = argument.partition("[")
    return name, int(item.removesuffix("]")) if bracket else None


def fraction_of(role: str) -> str:
    """The field of a `Stage` that says how much of a role is kept."""
    return "neurons" if role.startswith("neurons") else "heads"


@dataclass(frozen=True)
class Role:
    """An axis that may be narrowed."""

    name: str  # "heads", "neurons", …; a second one of its kind in a layer is "heads_2"
    axis: Axis
    note: str = ""

    @property
    def fraction(self) -> str:
        """The field of a `Stage` that says how much of it is kept."""
        return fraction_of(self.name)


@dataclass(frozen=True)
class Roles:
    found: tuple[Role, ...] = ()
    cores: tuple[Core, ...] = ()
    notes: tuple[str, ...] = ()  # in words, what was looked at and could not be narrowed


@dataclass(frozen=True)
class Gather:
    """An index input of a narrowed graph: the kept positions along a dimension."""

    placeholder: str
    dim: Dim


@dataclass(frozen=True)
class Indices:
    gathers: tuple[Gather, ...] = ()
    kept: Mapping[Axis, int] = field(default_factory=dict)
    weights: tuple[tuple[str, int, str], ...] = ()  # (path, dimension, index placeholder) of each narrowed weight
    of_one_unit: tuple[tuple[str, int, str], ...] = ()  # (path, unit, index) of weights that a unit has alone


def put(gm: GraphModule, tag: object) -> None:
    gm.meta[type(tag).__qualname__] = tag


def get(gm: GraphModule, kind: type[T], default: T | None = None) -> T:
    """The tag of that kind; the default, or else KeyError, if no pass has put one."""
    tag = gm.meta.get(kind.__qualname__, default)
    if tag is None:
        raise KeyError(f"the graph carries no {kind.__qualname__}; the pass that puts it has not run")
    assert isinstance(tag, kind)
    return tag
