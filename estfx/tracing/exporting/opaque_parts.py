"""Which submodules of a layer torch.export cannot take, so that each becomes one node that calls its code.

A loop over the experts that were chosen, or a branch on what a tensor holds, makes the export fail within some
submodule. Its place is in the traceback. The layer is run once more, on real numbers, to see what the submodule gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from types import TracebackType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from estfx.errors import TraceError
from estfx.graphs import TENSOR, OpaqueModule, OpaqueOutput, extent_of
from estfx.tracing.capture import run_quietly, values_on_meta
from estfx.tracing.effects import HeldState, tensors_held
from estfx.tracing.layer_call import LayerCall

__all__ = ["OpaqueParts"]

MOST = 16  # submodules that are tried
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class _Result:
    """What a submodule gave at one of its calls on the example."""

    tensors: tuple[torch.Tensor, ...]  # on the meta device
    spec: pytree.TreeSpec
    flops: int
    given: tuple[torch.Size, ...]  # the sizes of what it was given


@dataclass
class OpaqueParts:
    """The submodules of a layer that are one node each, by their paths."""

    call: LayerCall
    reasons: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # those for which that was no help
    made: list[OpaqueModule] = field(default_factory=list)  # for the calls in the last export

    def add(self, error: TraceError) -> bool:
        """Takes the innermost submodule in which the export failed; False if there is none to be tried."""
        reason = str(error)
        for path in _within(self.call.module, error):
            if path in self.reasons:  # it is one node already, and the failure lies in how it is called
                reason = self.reasons.pop(path)
                self.refused.add(path)
            elif path not in self.refused and len(self.reasons) + len(self.refused) < MOST:
                self.reasons = {p: r for p, r in self.reasons.items() if not p.startswith(f"{path}.")}
                self.reasons[path] = reason
                return True
        return False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the layer is exported, calls of the submodules become nodes."""
        seen = self._observed() if self.reasons else {}
        self.made.clear()
        with ExitStack() as stack:
            for path, results in seen.items():
                module = self.call.module.get_submodule(path)
                stack.enter_context(mock.patch.object(module, "forward", _Standing(self, path, module, results)))
            yield

    def _observed(self) -> dict[str, list[_Result]]:
        """What each of them gives when the layer is run on the example."""
        layer, call = self.call.module, self.call
        seen: dict[str, list[_Result]] = {path: [] for path in self.reasons}
        running: list[tuple[list[int], FlopCounterMode]] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            counter = FlopCounterMode(display=False)
            running.append(([t._version for t in _tensors((args, kwargs))], counter))
            counter.__enter__()

        def leave(path: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
                versions, counter = running.pop()
                counter.__exit__(None, None, None)
                inputs = _tensors((args, kwargs))
                leaves, spec = pytree.tree_flatten(result)
                if [t._version for t in inputs] != versions:
                    raise TraceError(f"`{path}` writes into what it is given")
                if not inputs or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
                    raise TraceError(f"`{path}` takes no tensor, or gives what is none")
                flops = counter.get_total_flops()
                given = tuple(t.shape for t in inputs)
                seen[path].append(_Result(tuple(t.detach().to("meta") for t in leaves), spec, flops, given))

            return hook

        held = HeldState(layer, call.args, call.kwargs)
        with run_quietly(layer), torch.enable_grad(), values_on_meta(layer), ExitStack() as stack:
            for path in self.reasons:
                module = layer.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(path), with_kwargs=True).remove)
            try:
                layer.forward(*call.args, **call.kwargs)
            finally:
                while running:
                    running.pop()[1].__exit__(None, None, None)
        held.put_back(held.changes())
        return seen


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _Standing:
    """The forward of a submodule while its layer is exported: one node for each of its calls."""

    def __init__(self, parts: OpaqueParts, path: str, module: nn.Module, results: list[_Result]) -> None:
        self.parts, self.path, self.module, self.results = parts, path, module, results

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.results:
            raise TraceError(f"`{self.path}` is called more often than on the example inputs")
        if held := [path for path, _ in tensors_held(self.module)]:
            raise TraceError(f"`{self.path}` holds tensors that are no buffers: {', '.join(held)}")
        result = self.results.pop(0)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        for leaf in leaves:
            if not isinstance(leaf, (torch.Tensor, *PLAIN)):
                raise TraceError(f"`{self.path}` is given a {type(leaf).__name__}")
        weights = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        inputs = _tensors(leaves)
        opaque = OpaqueModule(
            path=self.path,
            reason=self.parts.reasons[self.path],
            module=self.module,
            leaves=tuple(TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves),
            spec=spec,
            weights=tuple(weights),
            outputs=tuple(_output(tensor, inputs, result.given) for tensor in result.tensors),
            flops=result.flops,
            numbers=result.given[0].numel(),
        )
        self.parts.made.append(opaque)
        return pytree.tree_unflatten(opaque.stand_in([*inputs, *weights.values()]), result.spec)


def _output(tensor: torch.Tensor, inputs: list[torch.Tensor], given: tuple[torch.Size, ...]) -> OpaqueOutput:
    """Its sizes as those of the inputs that are left open, and as numbers where no such size is the same.

    `given`: the sizes of the inputs when this tensor was computed. How many tokens an expert gets, the graph does not
    know, so only there can the two be compared. Sizes may be equal by chance: of those that are, the one in the same
    dimension of the first input is taken.
    """
    open_sizes: dict[str, tuple[int, int, int]] = {}  # each size once: its value, and where it is
    is_open: set[tuple[int, int]] = set()
    for i, (tracked, sizes) in enumerate(zip(inputs, given, strict=True)):
        for dim, (size, value) in enumerate(zip(tracked.shape, sizes, strict=True)):
            _, expr = extent_of(size)
            if not isinstance(expr, int):
                is_open.add((i, dim))
                open_sizes.setdefault(str(expr), (value, i, dim))
    by_value: dict[int, tuple[tuple[int, int], ...]] = {}
    for count in (1, 2):
        for chosen in combinations(open_sizes.values(), count):
            value = chosen[0][0] * chosen[-1][0] if count == 2 else chosen[0][0]
            by_value.setdefault(value, tuple((i, dim) for _, i, dim in chosen))

    def size_of(dim: int, value: int) -> Any:
        if tensor.ndim == len(given[0]) and given[0][dim] == value:
            return ((0, dim),) if (0, dim) in is_open else value
        return by_value.get(value, value)

    return OpaqueOutput(tensor.dtype, tuple(size_of(dim, value) for dim, value in enumerate(tensor.shape)))


def _within(layer: nn.Module, error: TraceError) -> Iterator[str]:
    """The submodules in which an error was raised, innermost first; none if the error is of this package alone."""
    paths = {id(module): path for path, module in layer.named_modules() if path}
    found: list[str] = []
    cause = error.__cause__
    frame: TracebackType | None = cause.__traceback__ if cause is not None else None
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        owner = owner.module if isinstance(owner, _Standing) else owner
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found.append(paths[id(owner)])
        frame = frame.tb_next
    return iter(dict.fromkeys(reversed(found)))
