"""Modules outside of the layers, compiled while the model trains: norms, embeddings and heads of several operations.

Eager, each of their operations reads and writes the whole stream, or all logits, once more. They do not depend on the
subnetwork, so that each is compiled once for all stages. As with layers, a module's class is swapped for a subclass of
the same name; in eval mode it is the original.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from estfx.runtime.runtime import Runtime
from estfx.stand_ins import as_original, stand_in_for

__all__ = ["changed_outside", "mount_outside", "unmount_outside"]

ATTRIBUTE = "_estfx_outside"  # where such a module keeps what estfx adds


@dataclass
class _Outside:
    runtime: Runtime
    original_class: type[nn.Module]

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.original_class.forward
        if module.training and not self.runtime.idle and self.runtime.compiler is not None:
            forward = self.runtime.compiler.outer_function(forward, f"the module {self.original_class.__name__}")
        return forward(module, *args, **kwargs)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _mounted(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _classes:

        @functools.wraps(cls.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here: _Outside = self.__dict__[ATTRIBUTE]
            return here.run(self, args, kwargs)

        def __reduce_ex__(self: nn.Module, protocol: object) -> tuple[Any, ...]:
            return as_original(self, ATTRIBUTE)

        _classes[cls] = stand_in_for(cls, {"forward": forward, "__reduce_ex__": __reduce_ex__})
    return _classes[cls]


def mount_outside(model: nn.Module, layers: Collection[str], runtime: Runtime) -> None:
    """Has modules run compiled that neither lie in one of the layers, which are given by their names, nor hold any."""
    own = [module for name, module in model.named_modules() if name in layers]
    within = {module for layer in own for module in layer.modules()}
    for module in list(_around(model, set(own))):
        if module not in within and _is_worth_it(module):
            module.__dict__[ATTRIBUTE] = _Outside(runtime, type(module))
            module.__class__ = _mounted(type(module))


def _mounts(model: nn.Module) -> Iterator[tuple[nn.Module, _Outside]]:
    return ((module, vars(module)[ATTRIBUTE]) for module in model.modules() if ATTRIBUTE in vars(module))


def changed_outside(model: nn.Module) -> list[nn.Module]:
    """The modules that are no longer as `mount_outside` left them."""
    return [module for module, here in _mounts(model) if type(module) is not _classes.get(here.original_class)]


def unmount_outside(model: nn.Module) -> None:
    for module, here in list(_mounts(model)):
        module.__class__ = here.original_class
        del module.__dict__[ATTRIBUTE]


def _around(module: nn.Module, layers: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest modules that hold no layer."""
    for child in module.children():
        if child in layers:
            continue
        if layers.isdisjoint(child.modules()):
            yield child
        else:
            yield from _around(child, layers)


def _is_worth_it(module: nn.Module) -> bool:
    """Whether a module has parameters and is more than one of torch's own; a stack of layers would compile for long."""
    if next(module.parameters(), None) is None or "forward" in vars(module):
        return False
    if any(isinstance(part, (nn.ModuleList, nn.ModuleDict)) for part in module.modules()):
        return False
    of_torch = type(module).forward.__module__.startswith("torch.nn.modules.")
    return not of_torch or next(module.children(), None) is not None
