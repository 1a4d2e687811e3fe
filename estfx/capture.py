"""Finds a decoder's layers by running it once and watching which calls map a residual stream to its own shape."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from estfx.errors import TraceError, UnsupportedModelError
from estfx.meta_run import NumbersHaveValues
from estfx.signature import flatten

__all__ = ["LayerCall", "capture_layers", "default_inputs", "run_quietly"]

BATCH, SEQUENCE = 3, 17  # distinct primes, so that no size is mistaken for the other


@dataclass
class LayerCall:
    """One layer as the model called it."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stream_leaf: int  # which leaf of (args, kwargs) is the residual stream
    out_spec: pytree.TreeSpec
    outputs: list[Any]  # leaves of the result
    stream_output: int  # which leaf of the result is the stream
    calls: int = 1
    alive: set[int] = field(default_factory=set)  # other result leaves that something outside the layer read
    attributes: dict[str, set[str]] = field(default_factory=dict)  # read while it ran, by submodule


def default_inputs(
    model: nn.Module, batch: int = BATCH, sequence: int = SEQUENCE, limit: bool = True
) -> dict[str, Any]:
    """Random token ids for a transformers model, no longer than its positions; any other needs `example_inputs`."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise TraceError(
            f"`{type(model).__name__}` has no `config.vocab_size` to make example token ids from. "
            "Pass example_inputs: a dict of keyword arguments or a tuple of arguments of its forward."
        )
    longest = getattr(text, "max_position_embeddings", None)
    if limit and isinstance(longest, int) and longest > 1:
        sequence = min(sequence, longest)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (batch, sequence), generator=generator)
    return {"input_ids": tokens.to(device)}


def call_arguments(model: nn.Module, example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`example_inputs` as (args, kwargs)."""
    if example_inputs is None:
        example_inputs = default_inputs(model)
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    raise TraceError(f"example_inputs has the type {type(example_inputs).__name__}; pass a dict, a tuple or a tensor.")


def without_cache(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`use_cache=False` for a model that would otherwise fill a KV cache that training never reads."""
    if "use_cache" in kwargs or kwargs.get("past_key_values") is not None:
        return kwargs
    config = getattr(model, "config", None)
    parameters = inspect.signature(type(model).forward).parameters
    hands_on = hasattr(config, "use_cache") and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if config is None or not ("use_cache" in parameters or hands_on):
        return kwargs
    return {**kwargs, "use_cache": False}


@contextmanager
def run_quietly(model: nn.Module) -> Iterator[None]:
    """Training mode, no gradients, and afterwards the same random state, training flags and buffers as before."""
    flags = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)), torch.no_grad():
        try:
            model.train()
            yield
        finally:
            for module, training in flags.items():
                module.training = training
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def values_on_meta(model: nn.Module) -> AbstractContextManager[Any]:
    """For a model on the meta device, what lets its code look at numbers; nothing for any other."""
    on_meta = any(p.device.type == "meta" for p in model.parameters())
    return NumbersHaveValues() if on_meta else nullcontext()


class _Watch(TorchFunctionMode):
    """Notes which of the watched tensors any operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[torch.Tensor, LayerCall, int]] = {}

    def read(self, tree: object) -> None:
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and id(leaf) in self.watched:
                _, call, position = self.watched[id(leaf)]
                call.alive.add(position)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.watched:
            self.read((args, kwargs))
        return func(*args, **kwargs)


def _stream_leaves(inputs: list[Any], outputs: list[Any]) -> tuple[int, int] | None:
    """(input leaf, output leaf) of the first floating-point tensor that keeps its shape, or None."""
    for j, out in enumerate(outputs):
        if isinstance(out, torch.Tensor):
            if not out.is_floating_point() or out.ndim < 2:
                return None
            for i, leaf in enumerate(inputs):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.shape == out.shape:
                    return i, j
            return None
    return None


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    members: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            for key, member in module.named_children():
                if next(member.parameters(), None) is not None:
                    members[f"{name}.{key}" if name else key] = member
    return members


def capture_layers(model: nn.Module, example_inputs: object = None) -> list[LayerCall]:
    """The layers in the order in which the model calls them.

    Raises UnsupportedModelError if there are none, TraceError if the model does not run on the example inputs.
    """
    args, kwargs = call_arguments(model, example_inputs)
    kwargs = without_cache(model, kwargs)
    found: dict[str, LayerCall] = {}
    watch = _Watch()

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.read((args, kwargs))

    def leave(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if name in found:
                found[name].calls += 1
                return
            inputs = flatten(args, kwargs)[0]
            outputs, out_spec = pytree.tree_flatten(result)
            stream = _stream_leaves(inputs, outputs)
            if stream is None:
                return
            call = LayerCall(name, module, args, dict(kwargs), stream[0], out_spec, outputs, stream[1])
            found[name] = call
            for position, leaf in enumerate(outputs):
                if isinstance(leaf, torch.Tensor) and position != stream[1] and leaf is not outputs[stream[1]]:
                    watch.watched[id(leaf)] = (leaf, call, position)

        return hook

    candidates = _candidates(model)
    with ExitStack() as stack, run_quietly(model):
        reads = stack.enter_context(_recorded_reads(candidates))
        for name, module in candidates.items():
            for handle in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave(name, module), with_kwargs=True),
            ):
                stack.callback(handle.remove)
        try:
            with watch, values_on_meta(model):
                result = model(*copy.copy(args), **kwargs)
        except Exception as error:
            error.add_note(f"while `{type(model).__name__}` ran on the example inputs of estfx, in training mode")
            raise TraceError(f"`{type(model).__name__}` does not run on the example inputs: {error}") from error
        watch.read(result)
    layers = [call for name, call in found.items() if not any(name.startswith(f"{outer}.") for outer in found)]
    for call in layers:
        call.attributes = {path: names for path, names in reads.get(call.name, {}).items() if names}
    if not layers:
        lists = sorted(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        what = f"none of its ModuleLists ({', '.join(lists)}) holds" if lists else "it has no nn.ModuleList that holds"
        raise UnsupportedModelError(
            f"no layers found in `{type(model).__name__}`: {what} modules that map a residual stream to its own shape. "
            "Put the layers into an nn.ModuleList and let each take the stream and return it."
        )
    return layers


@contextmanager
def _recorded_reads(candidates: dict[str, nn.Module]) -> Iterator[dict[str, dict[str, set[str]]]]:
    """Which attributes each layer's submodules read: layers that differ in none of them run the same code."""
    reads: dict[str, dict[str, set[str]]] = {}
    classes: dict[type, type] = {}
    sinks: dict[int, set[str]] = {}
    swapped: list[tuple[nn.Module, type]] = []

    def recording(cls: type) -> type:
        lookup: Any = cls.__getattribute__

        def __getattribute__(self: nn.Module, name: str) -> Any:
            if not name.startswith("_"):
                sink = sinks.get(id(self))
                if sink is not None:
                    sink.add(name)
            return lookup(self, name)

        return type(cls.__name__, (cls,), {"__getattribute__": __getattribute__, "__module__": cls.__module__})

    for name, layer in candidates.items():
        for path, module in layer.named_modules():
            sinks[id(module)] = reads.setdefault(name, {}).setdefault(path, set())
            if type(module) in classes.values():
                continue
            cls = type(module)
            try:
                module.__class__ = classes.setdefault(cls, recording(cls))
                swapped.append((module, cls))
            except TypeError:  # a class with its own layout, such as a scripted module: compare all it has
                sinks[id(module)].update(k for k in vars(module) if not k.startswith("_"))
    try:
        yield reads
    finally:
        for module, cls in swapped:
            module.__class__ = cls
