"""Runs a model with something else in the place of its layers' forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from estfx.programs import Variant
from estfx.tracing import Decoder, flatten

__all__ = ["LayerForward", "layer_forwards", "passing"]

LayerForward = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]  # of a layer and its arguments


@contextmanager
def layer_forwards(decoder: Decoder, forwards: Mapping[str, LayerForward]) -> Iterator[None]:
    """While it lasts, layers compute by these functions, given by the layers' names."""
    by_module: dict[str, list[LayerForward]] = {}
    for name in decoder.order:
        if name in forwards:
            by_module.setdefault(decoder.infos[name].call.path, []).append(forwards[name])
    before: dict[str, Any] = {}
    for path, each in by_module.items():
        module = decoder.model.get_submodule(path)
        before[path] = vars(module).get("forward")
        module.__dict__["forward"] = _InTurn(module, each)
    try:
        yield
    finally:
        for path, forward in before.items():
            own = decoder.model.get_submodule(path).__dict__
            own.pop("forward")
            if forward is not None:
                own["forward"] = forward


def passing(variant: Variant) -> LayerForward:
    """What a layer gives when it is passed over."""
    return lambda module, args, kwargs: variant.passed_over(flatten(args, kwargs)[0])


class _InTurn:
    """The calls of one module in a forward, one after the other."""

    def __init__(self, module: nn.Module, calls: list[LayerForward]) -> None:
        self._module, self._calls, self._number = module, calls, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._calls[self._number % len(self._calls)]
        self._number += 1
        return call(self._module, args, kwargs)
