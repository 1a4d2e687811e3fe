"""What transformers itself offers to make a layer's code exportable, if transformers is what the model is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

__all__ = ["exportable_experts", "loops_over_experts", "reversible_patches"]

IMPLEMENTATION = "_experts_implementation"  # in a configuration: how a mixture of experts is computed
EXPORTABLE = "grouped_mm"  # the implementation whose graph does not depend on which experts were chosen
LOOPS = ("eager", None)


def reversible_patches() -> AbstractContextManager[Any]:
    """Transformers' own patches for code that does not export."""
    try:
        from transformers.exporters.exporter_dynamo import apply_patches  # type: ignore[attr-defined]
    except ImportError:
        return nullcontext()
    return apply_patches("dynamo")


def _looping(layer: nn.Module) -> list[Any]:
    """The configurations of the layer's modules that ask for a loop over the experts that were chosen."""
    configs = (getattr(module, "config", None) for module in layer.modules() if hasattr(module, "num_experts"))
    found = {id(c): c for c in configs if hasattr(c, IMPLEMENTATION) and getattr(c, IMPLEMENTATION) in LOOPS}
    return list(found.values())


def loops_over_experts(layer: nn.Module) -> bool:
    return bool(_looping(layer))


@contextmanager
def exportable_experts(layer: nn.Module) -> Iterator[None]:
    """Within it, the layer's mixtures of experts are computed as grouped products: the same sums in another order."""
    configs = _looping(layer)
    before = [getattr(config, IMPLEMENTATION) for config in configs]
    try:
        for config in configs:
            setattr(config, IMPLEMENTATION, EXPORTABLE)
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            setattr(config, IMPLEMENTATION, implementation)
