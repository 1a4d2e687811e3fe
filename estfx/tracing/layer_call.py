"""A call of a layer: what is recorded of it, and what its graph is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from estfx.tracing.effects import Place

__all__ = ["LayerCall"]


@dataclass
class LayerCall:
    """One call of a layer, as the model made it. A layer that is called again is a layer of its own each time."""

    name: str  # the module's name; from its second call on with the call's number: `layers.0#2`
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stream_leaf: int  # which leaf of (args, kwargs) is the residual stream
    out_spec: pytree.TreeSpec
    outputs: list[Any]  # leaves of the result
    stream_output: int  # which leaf of the result is the stream
    alive: set[int] = field(default_factory=set)  # other leaves of `outputs` that something outside the layer read
    attributes: dict[str, set[str]] = field(default_factory=dict)  # read while it ran, by submodule
    number: int = 1  # of the calls of this module within one forward
    written: tuple[Place, ...] = ()  # where it leaves values beside its result; they are the last of `outputs`
    lost: tuple[str, ...] = ()  # what it does besides that no graph would do, in words
    operations: int = 0  # how many functions of torch it called
    added: bool = False  # all that the model did with its stream was to add it to another tensor

    @property
    def returned(self) -> int:
        """How many of `outputs` the layer returns; the others it leaves in `written`."""
        return self.out_spec.children()[0].num_leaves if self.written else len(self.outputs)

    @property
    def path(self) -> str:
        """The module's name in the model."""
        return self.name if self.number == 1 else self.name.removesuffix(f"#{self.number}")
