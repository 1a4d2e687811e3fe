"""The tables of op rules and resizers, and how one gets into them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch._ops import OpOverload
from torch.fx import Node

from estfx.axes.algebra import Algebra, Ref
from estfx.errors import EstfxError
from estfx.graphs import describe, extent_of

__all__ = [
    "FACTORIES",
    "RESIZERS",
    "RULES",
    "STATISTICS",
    "Arguments",
    "Dims",
    "check_result",
    "entry",
    "resizer",
    "rule",
]

Dims: TypeAlias = tuple[Ref, ...]
Arguments: TypeAlias = Mapping[str, Any]
# The first argument is a `Walk` or a `Resize`, which are made on top of these tables.
Rule: TypeAlias = Callable[[Any, Node, Arguments], Dims | list[Dims]]
Resizer: TypeAlias = Callable[[Any, Node, Arguments], Mapping[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])

RULES: dict[object, Rule] = {}  # by overload, or by its name
RESIZERS: dict[object, Resizer] = {}  # likewise
FACTORIES: set[OpOverload] = set()  # operators whose result is born in them
STATISTICS: set[object] = set()  # operators whose result for a part is not a part of the result
_NAME = re.compile(r"\w+::\w+(\.\w+)?")  # of an overload


def entry(table: Mapping[object, F], operator: object) -> F | None:
    """The function that a table has for an operator, by the overload or by its name; None if it has none."""
    found = table.get(operator)
    return table.get(operator.name()) if found is None and isinstance(operator, OpOverload) else found


def rule(*overloads: OpOverload | str, replace: bool = False) -> Callable[[F], F]:
    """Registers the decorated function as the op rule of these operators, for all models traced from then on.

    The function is called as `function(walk, node, arguments)` and returns the dimensions of the operator's result, one
    for each dimension it has (a list of such tuples, where the operator gives a list of tensors).

    Args:
        overloads: of operators, such as `torch.ops.example.swiglu.default`. One that is defined later, by a library
            that need not be imported, is given by its name: `"example::swiglu"`, of another overload
            `"example::swiglu.out"`.
        replace: take the place of the rule that an operator has already.

    Raises:
        EstfxError: an operator has a rule already, or what is given is no overload.
    """
    return _registering("rule", RULES, overloads, replace)


def resizer(*overloads: OpOverload | str, replace: bool = False) -> Callable[[F], F]:
    """Registers the decorated function as the resizer of these operators, beside their rule.

    The function is called as `function(resize, node, arguments)` for a node of a layer that is narrowed, and returns
    the arguments that must change, by name, such as the sizes of a `view`. Arguments and errors are those of `rule`.
    """
    return _registering("resizer", RESIZERS, overloads, replace)


def _registering(what: str, table: dict[object, Any], overloads: Sequence[object], replace: bool) -> Callable[[F], F]:
    if not overloads:
        raise EstfxError(f"a {what} is of an operator: name it, as in @{what}(torch.ops.example.swiglu.default).")
    for overload in overloads:
        if not isinstance(overload, OpOverload) and not (isinstance(overload, str) and _NAME.fullmatch(overload)):
            raise EstfxError(_no_overload(what, overload))

    def register(function: F) -> F:
        for overload in overloads if not replace else ():
            if (known := _known(table, overload)) is not None:
                first = table[known]
                shown = repr(overload) if isinstance(overload, str) else f"torch.ops.{overload}"
                raise EstfxError(
                    f"{overload} has a {what} already: `{first.__name__}` of {first.__module__}. To put another in its "
                    f"place on purpose, register it with @{what}({shown}, replace=True)."
                )
        for overload in overloads:
            if (known := _known(table, overload)) is not None:
                del table[known]
            table[overload] = function
        return function

    return register


def _known(table: Mapping[object, Any], operator: object) -> object | None:
    """What an operator is called in a table, be it by overload or by name; None if it is not there."""
    if isinstance(operator, OpOverload):
        return next((known for known in (operator, operator.name()) if known in table), None)
    return next((known for known in table if _name_of(known) == operator), None)


def _name_of(operator: object) -> object:
    return operator.name() if isinstance(operator, OpOverload) else operator


def _no_overload(what: str, given: object) -> str:
    packet = getattr(given, "_opoverload", given)  # what torch.library.custom_op returns has its overload
    if isinstance(packet, OpOverload):
        return f"a {what} is of an overload, not of the function that defines the operator: write torch.ops.{packet}."
    if isinstance(given, torch._ops.OpOverloadPacket):
        names = given.overloads()
        return (
            f"a {what} is of an operator's overload, and {given} has these: {', '.join(names)}. Name those that you "
            f"mean, such as torch.ops.{given}.{names[0]}."
        )
    if isinstance(given, str):
        return f"{given!r} is no name of an operator's overload; those are like 'example::swiglu'."
    shown = getattr(given, "__name__", None) or repr(given)
    return (
        f"a {what} is of an operator's overload, such as torch.ops.example.swiglu.default; `{shown}` is of the type "
        f"{type(given).__name__}."
    )


def check_result(algebra: Algebra, node: Node, function: Callable[..., Any], dims: object) -> None:
    """Raises EstfxError unless what a rule gave are as many dimensions, of the same sizes, as the result has."""
    value = node.meta["val"]
    several = isinstance(value, (list, tuple))
    want = [_shape(each) for each in (value if several else [value])]
    given = dims if several else [dims]
    got: list[tuple[int, ...]] | None = None
    if isinstance(given, list) and all(isinstance(each, tuple) for each in given):
        with contextlib.suppress(LookupError, TypeError):  # not dimensions of this walk: sizes, say
            got = [tuple(algebra.size(ref) for ref in each) for each in given]
    if got == want:
        return
    shown = repr(dims) if got is None else f"dimensions of the sizes {_shown(got)}"
    form = (
        "a list, for each tensor a tuple with a dimension for each" if several else "a tuple with a dimension for each"
    )
    raise EstfxError(
        f"the rule for {node.target}, `{function.__name__}` of {function.__module__}, gives {shown} at "
        f"{describe(node)}; the operator gives {_shown(want)}. A rule returns {form} of the result's."
    )


def _shape(value: object) -> tuple[int, ...]:
    return tuple(extent_of(size)[0] for size in value.shape) if isinstance(value, torch.Tensor) else ()


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)
