"""Which functions a graph that is read from a file may call: none of them does anything but compute.

A file says by name what is called. So that a file from somebody else can be looked at without fear, a name stands for
an operator of ATen, of torch's higher order, of estfx or of transformers, for an autograd.Function, or for arithmetic
of sizes. Whoever reads a file may allow other names.
"""

from __future__ import annotations

import importlib
import math
import operator
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch

from estfx.errors import EstfxError
from estfx.graphs import callable_of

__all__ = ["function_named"]

NAMESPACES = frozenset({"aten", "prims", "estfx", "transformers"})
NOT_COMPUTING = frozenset({"aten::from_file"})  # it makes files
PACKAGES = frozenset({"torch", "transformers", "estfx"})  # from which a class is imported
OWN = ("estfx.graphs.gather",)
ARITHMETIC = frozenset(
    {
        *("abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "invert", "le", "lt", "mod", "mul", "ne"),
        *("neg", "not_", "or_", "pos", "pow", "rshift", "lshift", "sub", "truediv", "xor"),
    }
)


def function_named(name: str, allowed: Collection[str] = ()) -> Callable[..., Any]:
    """The function that a dump calls by this name.

    For a part of the model that no graph can hold it is one that raises EstfxError. Raises EstfxError if there is no
    such function, or if it is neither of those above nor among the names in `allowed`.
    """
    if name.startswith("opaque:"):
        return _left_out(name)
    found = _operator(name, allowed) if "::" in name else _python_function(name, allowed)
    if found is None:
        raise EstfxError(
            f"the file calls {name}, which is no operator that a graph of estfx is made of: ATen, torch's higher "
            "order, estfx, transformers, an autograd.Function, or arithmetic of sizes. If you trust it, pass "
            f"allowed=[{name!r}]."
        )
    return found


def _left_out(name: str) -> Callable[..., Any]:
    """Stands for a part of the model that no graph can hold: the graph can be read, and not be run."""

    def call(*given: Any) -> Any:
        path, _, kind = name.removeprefix("opaque:").partition(":")
        raise EstfxError(f"the graph runs `{path}` ({kind}), a part of the model itself, which no file holds.")

    return call


def _operator(name: str, allowed: Collection[str]) -> Callable[..., Any] | None:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.rpartition(".")
    known = namespace in NAMESPACES and f"{namespace}::{packet}" not in NOT_COMPUTING
    if not (known or namespace == "higher_order" or name in allowed):
        return None
    try:
        if namespace == "higher_order":
            found = getattr(torch.ops.higher_order, rest)
        else:
            found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError:
        raise EstfxError(f"there is no operator {name} here; import the module that has it first.") from None
    is_operator = isinstance(found, (torch._ops.OpOverload, torch._ops.HigherOrderOperator))
    return found if is_operator else None


def _python_function(name: str, allowed: Collection[str]) -> Callable[..., Any] | None:
    autograd, module, place = name.split(":") if name.count(":") == 2 else ("", *name.partition(":")[::2])
    computes = (
        (module == "operator" and place in ARITHMETIC)
        or (module == "math" and place in vars(math))
        or (module == "torch" and place.startswith("sym_"))
        or (module in OWN and place.isidentifier())
    )
    if not (computes or autograd or name in allowed):
        return None
    if module not in sys.modules and module.partition(".")[0] not in PACKAGES:
        raise EstfxError(f"there is no function {name} here; import the module that has it first.")
    try:
        found = operator.attrgetter(place)(importlib.import_module(module))
    except (AttributeError, ImportError):
        raise EstfxError(f"there is no function {name} here; import the module that has it first.") from None
    if autograd:
        is_own = isinstance(found, type) and issubclass(found, torch.autograd.Function)
        return callable_of(found) if is_own else None
    return found  # type: ignore[no-any-return]
