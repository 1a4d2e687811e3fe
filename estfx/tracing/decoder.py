"""Turns a decoder into torch.fx: one graph of ATen operators for each kind of layer, and an outer graph around them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn
from torch.fx import GraphModule

from estfx.errors import TraceError
from estfx.tracing.capture import call_arguments, capture_layers
from estfx.tracing.device_placement import placement
from estfx.tracing.exporting.layer_graph import TracedLayer, trace_call
from estfx.tracing.kind_key import canonical, differing_attributes, kind_key
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.layer_names import LayerPatterns
from estfx.tracing.outer_graph import trace_outer
from estfx.tracing.unsharded_layers import left_sharded, unsharded
from estfx.waiting import tell, working

ATTRIBUTE = "_estfx"  # where a transformed model and its layers keep what estfx adds
__all__ = ["Decoder", "LayerInfo", "trace"]


@dataclass(frozen=True)
class LayerInfo:
    """A layer of the decoder: its name, the name of its program, and how the model called it.

    A module that the model calls more than once is a layer each time: `layers.0`, `layers.0#2`, …
    """

    name: str
    program: str
    call: LayerCall = field(repr=False)


@dataclass
class Decoder:
    """A whole decoder as torch.fx. `programs` holds one GraphModule for each kind of layer."""

    model: nn.Module
    infos: dict[str, LayerInfo]
    traced: dict[str, TracedLayer]
    example_inputs: object = None
    left: dict[str, str] = field(
        default_factory=dict
    )  # layers without a graph, by name, and why; they stay as they are
    order: tuple[str, ...] = ()  # all layers, as the model calls them

    def leave(self, reasons: Mapping[str, str]) -> None:
        """Has layers stay as they are, given by the paths of their modules with the reasons."""
        for name, info in list(self.infos.items()):
            if info.call.path in reasons:
                self.left[name] = reasons[info.call.path]
                del self.infos[name]
        used = {info.program for info in self.infos.values()}
        self.traced = {name: layer for name, layer in self.traced.items() if name in used}

    @property
    def programs(self) -> dict[str, GraphModule]:
        return {name: traced.graph for name, traced in self.traced.items()}

    @property
    def layers(self) -> dict[str, str]:
        """The program of each layer, in the order in which the model calls them."""
        return {name: info.program for name, info in self.infos.items()}

    @cached_property
    def outer(self) -> GraphModule:
        """The model with each layer as one `call_module`; made for reading, for the sizes of the example inputs."""
        with at_rest(self.model):
            calls = [info.call for info in self.infos.values()]
            return trace_outer(self.model, calls, *call_arguments(self.model, self.example_inputs))


@working("looking for the layers")
def trace(model: nn.Module, example_inputs: object = None, *, layers: LayerPatterns | None = None) -> Decoder:
    """The decoder as torch.fx graphs, without changing it.

    `example_inputs` are keyword arguments (a dict) or arguments (a tuple) of the model's forward; a transformers model
    needs none. `layers` names the layers instead of finding them: a pattern such as `"blocks.*"`, in which a star
    stands within one component of a dotted name, or a list of patterns and names.

    Raises UnsupportedModelError if the model has no layers or what `layers` names is none, TraceError if none of them
    can be exported. Where some can, the others are in `Decoder.left`; a module that is called more than once is there
    with all of its calls, since they are counted.
    """
    if layers is None and (runtime := vars(model).get(ATTRIBUTE)) is not None:
        layers = runtime.named  # a transformed model keeps the layers that it was given
    with at_rest(model), left_sharded(model):
        return _trace(model, example_inputs, layers)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """A transformed model as the original that it was."""
    runtime = vars(model).get(ATTRIBUTE)
    if runtime is None or runtime.idle:
        yield
        return
    runtime.idle = True
    try:
        yield
    finally:
        runtime.idle = False


def _trace(model: nn.Module, example_inputs: object, layers: LayerPatterns | None) -> Decoder:
    calls = _captured(model, example_inputs, layers)
    traced: dict[Hashable, tuple[str, TracedLayer]] = {}
    programs: dict[str, TracedLayer] = {}
    texts: dict[Hashable, str] = {}
    infos: dict[str, LayerInfo] = {}
    refused: dict[Hashable, TraceError] = {}
    reasons: dict[str, str] = {}  # by the path of the module
    differing = differing_attributes(calls)
    for number, call in enumerate(calls, start=1):
        tell(f"tracing layer {number} of {len(calls)}: {call.name}")
        key: Hashable = kind_key(call, differing)
        if where := placement(call.module):
            key = call.name
            refused[key] = TraceError(
                f"layer `{call.name}` ({type(call.module).__name__}) lies on several devices ({where}), and one graph "
                "takes its indices from one. Put the layer on one device to have it narrowed"
            )
        if key not in traced and key not in refused:
            try:
                with unsharded(model, call.path):
                    layer = trace_call(call)
            except TraceError as error:
                refused[key] = error
            else:
                text = (canonical(layer), layer.unread)
                if text not in texts:
                    texts[text] = name = _program_name(call.module, programs)
                    programs[name] = layer
                traced[key] = (texts[text], programs[texts[text]])
        if key in refused:
            reasons.setdefault(call.path, str(refused[key]))
        else:
            infos[call.name] = LayerInfo(call.name, traced[key][0], call)
    infos = {name: info for name, info in infos.items() if info.call.path not in reasons}
    if not infos:
        raise next(iter(refused.values()))
    left = {call.name: reasons[call.path] for call in calls if call.path in reasons}
    used = {info.program for info in infos.values()}
    programs = {name: layer for name, layer in programs.items() if name in used}
    return Decoder(model, infos, programs, example_inputs, left, tuple(call.name for call in calls))


def _captured(model: nn.Module, example_inputs: object, layers: LayerPatterns | None) -> list[LayerCall]:
    try:
        return capture_layers(model, example_inputs, layers)
    except TraceError as error:
        if where := placement(model):
            raise TraceError(
                f"{error}. Its parameters lie on several devices: {where}. Either put all on one, or let the model's "
                "own forward move the stream between its layers, each of them whole on one device."
            ) from error
        raise


def _program_name(module: nn.Module, taken: dict[str, TracedLayer]) -> str:
    base = type(module).__name__
    return base if base not in taken else next(n for i in range(2, 10_000) if (n := f"{base}_{i}") not in taken)
