"""Modules that no graph can hold, each as one node that calls the module's own code.

Such a module loops over what is in its tensors, or branches on it. The node is given the module's arguments and then
its weights, so that every layer of a kind runs it with its own. All that it reads and gives stays whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError

__all__ = [
    "TENSOR",
    "OpaqueModule",
    "OpaqueOutput",
    "opaque_flops",
    "opaque_module_of",
    "opaque_modules",
    "put_opaque_modules",
]

TENSOR = object()  # stands for a tensor among the arguments
Size: TypeAlias = "int | tuple[tuple[int, int], ...]"  # or a product of sizes of the inputs: (input, dimension)
_known: WeakValueDictionary[int, OpaqueModule] = WeakValueDictionary()  # graphs hold them
_numbers = itertools.count()


@dataclass(frozen=True)
class OpaqueOutput:
    """A tensor that the module gives."""

    dtype: torch.dtype
    sizes: tuple[Size, ...]

    def shape(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        return [size if isinstance(size, int) else prod(inputs[i].shape[dim] for i, dim in size) for size in self.sizes]


@dataclass(frozen=True, eq=False)
class OpaqueModule:
    """One call of such a module."""

    path: str  # in the layer
    reason: str  # why it is no graph
    module: nn.Module
    leaves: tuple[Any, ...]  # of (args, kwargs)
    spec: pytree.TreeSpec
    weights: tuple[str, ...]  # the names of its parameters and buffers, which come after the arguments
    outputs: tuple[OpaqueOutput, ...]
    flops: int  # of its forward, on the example inputs
    numbers: int  # in the first of its arguments, there
    number: int = field(default_factory=_numbers.__next__)

    def __post_init__(self) -> None:
        _known[self.number] = self

    def stand_in(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the call gives where no tensor has values."""
        given: list[torch.Tensor] = torch.ops.estfx.opaque_module(self.number, tensors)
        return given

    def run(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in tensors):
            return tuple(self.stand_in(list(tensors)))
        given = iter(tensors)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self.leaves]
        inputs = tensors[: len(tensors) - len(self.weights)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        result = functional_call(self.module, dict(zip(self.weights, given, strict=True)), args, kwargs)
        found = [leaf.contiguous() for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        shapes = [list(leaf.shape) for leaf in found]
        if shapes != (wanted := [output.shape(inputs) for output in self.outputs]):
            raise EstfxError(
                f"`{self.path}` ({type(self.module).__name__}) runs as it is within the graph of a layer. On the "
                f"example inputs its sizes were such as here would be {wanted}, but it gives {shapes}. Pass "
                "example_inputs to transform that look like the training batches."
            )
        return tuple(found)


@torch.library.custom_op("estfx::opaque_module", mutates_args=())
def _opaque_module(number: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Stands for the call where no tensor has values: while a layer is exported, and where its cost is counted."""
    return _outputs(number, tensors)


def _outputs(number: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[0].new_empty(output.shape(tensors), dtype=output.dtype) for output in _known[number].outputs]


_opaque_module.register_fake(_outputs)


@torch.library.custom_op("estfx::opaque_module_backward", mutates_args=())
def _opaque_module_backward(number: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


@_opaque_module_backward.register_fake
def _(number: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _keep(ctx: Any, inputs: tuple[int, list[torch.Tensor]], output: Any) -> None:
    ctx.number, tensors = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *gradients: Any) -> tuple[None, list[torch.Tensor]]:
    return None, torch.ops.estfx.opaque_module_backward(ctx.number, list(ctx.saved_tensors))


torch.library.register_autograd("estfx::opaque_module", _backward, setup_context=_keep)


def opaque_flops(number: int, tensors: list[torch.Size], *_: Any, **__: Any) -> int:
    """FLOPs of the forward of such a node, in proportion to the numbers in its first argument."""
    opaque = _known[number]
    return round(opaque.flops * prod(tensors[0]) / max(opaque.numbers, 1))


def put_opaque_modules(graph: Graph) -> None:
    """Puts the modules' own code where export has put its stand-in."""
    for node in graph.nodes:
        if node.target is torch.ops.estfx.opaque_module.default:
            number, tensors = node.args
            node.target, node.args = _callable_of(_known[number]), tuple(tensors)


def _callable_of(opaque: OpaqueModule) -> Callable[..., Any]:
    def call(*tensors: torch.Tensor) -> Any:
        return opaque.run(*tensors)

    call.__name__ = call.__qualname__ = type(opaque.module).__name__
    call.__module__ = type(opaque.module).__module__
    made: Any = torch.compiler.disable(call, reason="a module that no graph can hold")
    made.opaque_module = opaque
    return made  # type: ignore[no-any-return]


def opaque_module_of(target: object) -> OpaqueModule | None:
    """The module whose code a node with this target calls, if it is such a node."""
    return getattr(target, "opaque_module", None)


def opaque_modules(gm: GraphModule) -> list[OpaqueModule]:
    """The modules that nodes of the graph call."""
    found = (opaque_module_of(node.target) for node in gm.graph.nodes)
    return [opaque for opaque in found if opaque is not None]
