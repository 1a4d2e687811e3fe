"""torch.export of one layer, as it runs in training, or the reason why there is no graph of it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from typing import Any

import torch
import torch._dynamo.config
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from estfx.errors import TraceError
from estfx.graphs import is_model_code, kept_functions, put_opaque_modules
from estfx.stand_ins import CHECKPOINTING
from estfx.tracing.call_signature import flatten
from estfx.tracing.effects import HeldState, Place, held_tensors_as_before
from estfx.tracing.exporting.captured_stdout import held_output
from estfx.tracing.exporting.ignored_numbers import without_unread
from estfx.tracing.exporting.layer_state import Watch
from estfx.tracing.exporting.opaque_parts import OpaqueParts
from estfx.tracing.exporting.transformers_code import exportable_experts, loops_over_experts, reversible_patches
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.layer_calls import outcome

UNROLLED = 400  # calls of torch functions; of other layers, those with experts and latent attention make 250
DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
__all__ = ["does_more", "export_layer"]


class _Bound(nn.Module):
    """The layer as a function of its tensor arguments alone, the others fixed."""

    def __init__(
        self, layer: nn.Module, leaves: list[Any], spec: pytree.TreeSpec, written: tuple[Place, ...], most: float
    ) -> None:
        super().__init__()
        self._most = most
        self._written = written
        self.layer = layer
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self._spec = spec
        self.watch = Watch()
        self.lost: list[str] = []  # what it does that a graph would not do

    def forward(self, tensors: list[torch.Tensor]) -> Any:
        leaves = list(self._leaves)
        for i, tensor in zip(self._tensors, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        # from within: torch.export puts back whatever is set in its course, and calls many functions of torch itself
        held = HeldState(self.layer, args, kwargs)
        try:
            with self.watch.over(self.layer), _Calls(self._most):
                result = self.layer.forward(*args, **kwargs)  # hooks and checkpointing stay outside of the graph
            changes = held.changes()
        finally:
            held.put_back()  # or what stands for a value in a graph would stay where the layer left it
        self.lost = [change.reason for change in changes if change.reason]
        leaves, spec, places = outcome(result, changes)
        if places != self._written:
            names = [", ".join(f"`{place}`" for place in each) or "nothing" for each in (self._written, places)]
            raise TraceError(f"at one call it leaves values in {names[0]}, at another in {names[1]}")
        return pytree.tree_unflatten(leaves, spec)


class _Unrolled(Exception):
    pass


class _Calls(TorchFunctionMode):
    """Watches the layer's calls of torch while it is exported.

    Raises _Unrolled once there are more of them than in a layer that is no unrolled loop. `weight.data`, which no graph
    knows, is the weight detached: what is written into it is then written by the graph.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # the body of a loop or a branch, which must have no side effects
            return func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left < 0:
            raise _Unrolled
        if func == DATA:  # `is` would compare wrappers
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def export_layer(call: LayerCall) -> tuple[ExportedProgram, frozenset[int]]:
    """torch.export of one layer in training mode, and the numbers among its arguments that it does not read.

    Every size is left open but those that are 1, which broadcast. A layer that is an unrolled loop over positions has
    fixed sizes: with symbolic ones its export takes minutes. A submodule that torch cannot export is one node. Raises
    TraceError if torch cannot export the layer itself, or if it sets anything that it holds to something else.
    """
    leaves, spec = flatten(call.args, call.kwargs)
    parts = OpaqueParts(call)

    def exported(given: list[Any]) -> ExportedProgram:
        if call.operations <= UNROLLED or loops_over_experts(call.module) or parts.reasons:  # the loop is not exported
            with suppress(_Unrolled):
                return _exported(call, given, spec, Dim.AUTO, UNROLLED, parts)
        return _exported(call, given, spec, Dim.STATIC, inf, parts)

    try:
        return without_unread(exported, leaves)
    except TraceError as error:
        first, last = error, error
    while parts.add(last):
        try:
            return without_unread(exported, leaves)
        except TraceError as error:
            last = error
    raise first


def _exported(
    call: LayerCall, leaves: list[Any], spec: pytree.TreeSpec, open_size: Any, most: float, parts: OpaqueParts
) -> ExportedProgram:
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    shapes = [[Dim.STATIC if size == 1 else open_size for size in tensor.shape] for tensor in tensors]
    bound = _Bound(call.module, leaves, spec, call.written, most)
    with _training(call.module), exportable_experts(call.module), reversible_patches(), kept_functions():
        try:
            with (
                without_cached_shapes(),
                parts.in_place(),
                held_tensors_as_before(call.module),
                torch.enable_grad(),
                held_output(),
            ):  # torch prints the graph so far, beside what it raises
                exported = torch.export.export(bound, (tensors,), dynamic_shapes=(shapes,), strict=False)
        except _Unrolled:
            raise
        except TraceError as error:
            raise TraceError(str(error)) from error  # of one kind with all others: its cause says where
        except Exception as error:
            raise TraceError(_failure(error)) from error
    lost = [f"sets `{name}` anew" for name in bound.watch.changed] + bound.lost
    if lost:
        raise TraceError(does_more(lost))
    put_opaque_modules(exported.graph)  # which holds them from now on
    return exported


def does_more(reasons: Sequence[str]) -> str:
    """Why a layer that does such things is not replaced by a graph."""
    return f"a call {', '.join(dict.fromkeys(reasons))}, which a graph does not do again"


def without_cached_shapes() -> AbstractContextManager[Any]:
    """Shapes are worked out where they are asked for: with sizes left open, to look them up takes longer.

    That holds for a graph that is exported within it ever after. A trace takes 0.5 to 0.8 of the time.
    """
    patched: AbstractContextManager[Any] = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    return patched


def _failure(error: Exception) -> str:
    """What torch.export could not do and at which line of the model, in one sentence, and what to do about it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_model_code(f.filename)]
    where = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""
    what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = ""
    if "data-dependent" in what:
        advice = ". Let no branch of the layer depend on the values of a tensor: torch.where takes both"
    return f"torch.export fails{where}: {what}{advice}"


@contextmanager
def _training(layer: nn.Module) -> Iterator[None]:
    """Training mode, and no activation checkpointing: that goes around the program, not into it."""
    before = {module: (module.training, vars(module).get(CHECKPOINTING)) for module in layer.modules()}
    try:
        for module in before:
            module.training = True
            if before[module][1]:
                setattr(module, CHECKPOINTING, False)
        yield
    finally:
        for module, (training, checkpointing) in before.items():
            module.training = training
            if checkpointing:
                setattr(module, CHECKPOINTING, checkpointing)
