"""Public names that are loaded when they are first asked for (PEP 562), so that an import stays light.

A package that uses it says its names twice: to type checkers and editors as imports under `TYPE_CHECKING`, and to
Python as a mapping from each name to its module. A test holds the two together.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, modules: Mapping[str, str], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose names lie in these modules.

    `moved` has names that were there once, and in words what stands in their place; to ask for one raises an
    AttributeError that says so.
    """

    def __getattr__(name: str) -> Any:
        if name in modules:
            value = getattr(importlib.import_module(modules[name]), name)
            setattr(sys.modules[package], name, value)  # found at once from now on
            return value
        if moved and name in moved:
            raise AttributeError(f"{package}.{name} is gone: {moved[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__
