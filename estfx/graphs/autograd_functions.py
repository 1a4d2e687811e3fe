"""Keeps a model's own `torch.autograd.Function`s in its graphs, with the backward that they define.

torch.export inlines their forward, and with it goes their backward: gradients would then be those of the forward's
operators, equal only up to rounding. A function that works on each element by itself is kept as one node; any other is
inlined, so that its axes can be followed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.fx import Graph
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from estfx.graphs.dimensions import extent_of

__all__ = ["callable_of", "is_own_function", "is_pointwise_function", "kept_functions", "replace_calls"]

_calls: dict[int, tuple[type[torch.autograd.Function], tuple[Any, ...]]] = {}  # by number; tensors are left out
_pointwise: set[type[torch.autograd.Function]] = set()
_numbers = itertools.count()
_callables: dict[type[torch.autograd.Function], Callable[..., Any]] = {}


class _PointwiseOnly(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.only = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.only &= torch.Tag.pointwise in func.tags
        return func(*args, **(kwargs or {}))


def _is_pointwise(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> bool:
    """Whether the forward runs on shapes of its own choice as it does here, with nothing but pointwise operators."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if not tensors or len({tuple(map(str, t.shape)) for t in tensors}) != 1:
        return False
    dummies = [torch.empty(2, 3, dtype=a.dtype, device="meta") if isinstance(a, torch.Tensor) else a for a in args]
    with _disable_current_modes(), _PointwiseOnly() as watch:
        try:
            result = _forward(cls, dummies)
        except Exception:  # it needs what a plain context has not: then it is inlined
            return False
    return watch.only and isinstance(result, torch.Tensor) and result.shape == (2, 3)


def _has_its_own_gradient(cls: type[torch.autograd.Function], args: tuple[Any, ...], apply: Callable[..., Any]) -> bool:
    """Whether its backward is another than that of the operators in its forward; so too if that cannot be found out.

    False as well for a function that gives more than one tensor, which no single node can stand for.
    """
    generator = torch.Generator().manual_seed(0)

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = [extent_of(size)[0] for size in value.shape]
        if value.is_floating_point():
            made = torch.rand(shape, generator=generator, dtype=torch.float32).to(value.dtype)
            return made.requires_grad_(value.requires_grad)
        return torch.zeros(shape, dtype=value.dtype)  # a position that always exists

    with torch.random.fork_rng(devices=[]):
        reals = [real(a) for a in args]
        wanted = [r for r in reals if isinstance(r, torch.Tensor) and r.requires_grad]
        try:
            value = apply(cls, *reals)
            if not isinstance(value, torch.Tensor) or not wanted:
                return False
            own, plain = (
                torch.autograd.grad(made.float().pow(2).sum(), wanted, allow_unused=True)
                for made in (value, _forward(cls, reals))
            )
        except Exception:
            return True
    zeros = [torch.zeros_like(w) for w in wanted]
    pairs = zip(own, plain, zeros, strict=True)
    return not all(torch.allclose(z if a is None else a, z if b is None else b, rtol=1e-3) for a, b, z in pairs)


def _forward(cls: type[torch.autograd.Function], args: Sequence[Any]) -> Any:
    """The forward alone, in either of the two ways to write one: with the context in front, or with `setup_context`."""
    if cls.setup_context is not torch.autograd.Function.setup_context:
        return cls.forward(*args)
    return cls.forward(torch.autograd.function.FunctionCtx(), *args)


@torch.library.custom_op("estfx::own_function", mutates_args=())
def _own_function(number: int, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stands for the call while a layer is exported; never runs."""
    raise AssertionError("estfx::own_function left in a graph")


@_own_function.register_fake
def _(number: int, tensors: list[torch.Tensor]) -> torch.Tensor:
    cls, args = _calls[number]
    given = iter(tensors)
    result: torch.Tensor = _forward(cls, [next(given) if a is _TENSOR else a for a in args])
    return result


_TENSOR = object()


@contextmanager
def kept_functions() -> Iterator[None]:
    """While a layer is exported, calls of pointwise autograd functions become one node each."""
    inlined = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if kwargs or cls.__module__.startswith("torch."):
            return inlined(cls, *args, **kwargs)
        if _is_pointwise(cls, args):
            _pointwise.add(cls)
        else:
            with ThreadPoolExecutor(1) as apart:  # where nothing of this is traced
                own = apart.submit(_has_its_own_gradient, cls, args, inlined).result()
            if not own:
                return inlined(cls, *args, **kwargs)
        number = next(_numbers)
        _calls[number] = (cls, tuple(_TENSOR if isinstance(a, torch.Tensor) else a for a in args))
        return _own_function(number, [a for a in args if isinstance(a, torch.Tensor)])

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)):
        yield


def replace_calls(graph: Graph) -> None:
    """Puts the functions themselves where export has put their stand-in."""
    for node in list(graph.nodes):
        if node.target is torch.ops.estfx.own_function.default:
            cls, args = _calls[node.args[0]]
            given = iter(node.args[1])
            node.target = callable_of(cls)
            node.args = tuple(next(given) if a is _TENSOR else a for a in args)


def callable_of(cls: type[torch.autograd.Function]) -> Callable[..., Any]:
    if cls not in _callables:

        def call(*args: Any) -> Any:
            return cls.apply(*args)

        call.__name__ = call.__qualname__ = cls.__name__
        call.__module__ = cls.__module__
        _callables[cls] = call
    return _callables[cls]


def is_own_function(target: object) -> bool:
    return any(target is known for known in _callables.values())


def is_pointwise_function(target: object) -> bool:
    return any(target is known for cls, known in _callables.items() if cls in _pointwise)
