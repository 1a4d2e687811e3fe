"""KV caches that a model makes by itself and fills in training, where nothing ever reads them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import nn

__all__ = ["asks_for_cache", "without_empty_caches"]


def _is_cache(value: object) -> bool:
    """Whether it is a cache of transformers, which nothing can be if transformers was never imported."""
    caches = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(value, caches.Cache)


def asks_for_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the caller of a model has a cache filled, by giving one or by asking for it."""
    return bool(kwargs.get("use_cache")) or any(map(_is_cache, (*args, *kwargs.values())))


def without_empty_caches(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with None for each empty cache, if None is what its forward takes by default."""
    if not any(map(_is_cache, (*args, *kwargs.values()))):
        return args, kwargs
    try:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    except TypeError:  # the call itself says what is wrong with it
        return args, kwargs
    for name, value in bound.arguments.items():
        if _is_cache(value) and bound.signature.parameters[name].default is None and value.get_seq_length() == 0:
            bound.arguments[name] = None
    return bound.args, bound.kwargs
