"""Finds a decoder's layers by running it once and watching which calls map a residual stream to its own shape."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.errors import TraceError, UnsupportedModelError
from estfx.tracing.attribute_reads import Reads, all_attributes, recorded_reads
from estfx.tracing.call_signature import flatten
from estfx.tracing.effects import HeldState, held_tensors_as_before
from estfx.tracing.find_layers import WAYS, Way, layer_calls
from estfx.tracing.kv_caches import asks_for_cache
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.layer_calls import Recording, assume_all_is_read, compiled_parts, recorded_calls
from estfx.tracing.layer_names import LayerPatterns, check_named, looks_like_layers, named_modules
from estfx.tracing.meta_run import NumbersHaveValues

__all__ = [
    "call_arguments",
    "capture_layers",
    "default_inputs",
    "in_mode",
    "run_quietly",
    "sized_inputs",
    "values_on_meta",
    "without_cache",
]

log = logging.getLogger(__name__)
BATCH, SEQUENCE = 3, 17  # distinct primes, so that no size is mistaken for the other


def _text_config(model: nn.Module) -> Any:
    """The configuration of the text model, which in one of several kinds of input lies within the model's own."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def default_inputs(
    model: nn.Module, batch: int = BATCH, sequence: int = SEQUENCE, limit: bool = True
) -> dict[str, Any]:
    """Random token ids for a transformers model, no longer than its positions; any other needs `example_inputs`."""
    text = _text_config(model)
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise TraceError(
            f"`{type(model).__name__}` has no `config.vocab_size` to make example token ids from. "
            "Pass example_inputs: a dict of keyword arguments or a tuple of arguments of its forward. A factory on the "
            "command line returns them with the model: (model, example_inputs)."
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


def sized_inputs(model: nn.Module, example_inputs: object, batch: int, sequence: int) -> object:
    """Example inputs whose token ids, integers `[batch, sequence]`, have other sizes; other tensors of those sizes too.

    Raises TraceError if there are none.
    """
    if example_inputs is None:
        return default_inputs(model, batch, sequence, limit=False)
    args, kwargs = call_arguments(model, example_inputs)
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    tokens = next((x for x in leaves if x.ndim == 2 and not x.is_floating_point()), None)
    if tokens is None:
        raise TraceError("no token ids (integers [batch, sequence]) are among the example inputs, to be given sizes.")

    def sized(x: torch.Tensor) -> torch.Tensor:
        same = x.shape[:2] == tokens.shape
        return x.new_zeros(batch, sequence, *x.shape[2:]) if same else x

    args, kwargs = pytree.tree_map_only(torch.Tensor, sized, (args, kwargs))
    return kwargs if kwargs and not args else args


def without_cache(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`use_cache=False` for a model that would otherwise fill a KV cache that training never reads."""
    if "use_cache" in kwargs or kwargs.get("past_key_values") is not None:
        return kwargs
    config = getattr(model, "config", None)
    parameters = inspect.signature(type(model).forward).parameters
    caches = any(hasattr(each, "use_cache") for each in (config, _text_config(model)))
    hands_on = caches and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if config is None or not ("use_cache" in parameters or hands_on):
        return kwargs
    return {**kwargs, "use_cache": False}


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or in eval mode, and afterwards each module in its own again."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def run_quietly(model: nn.Module) -> Iterator[None]:
    """Training mode, no gradients, and afterwards the same random state, training flags and tensors as before."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    cuda = sorted(d.index or 0 for d in devices)
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), held_tensors_as_before(model):
        try:
            with in_mode(model, training=True):
                yield
        finally:
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def values_on_meta(model: nn.Module) -> AbstractContextManager[Any]:
    """For a model on the meta device, what lets its code look at numbers; nothing for any other."""
    on_meta = any(p.device.type == "meta" for p in model.parameters())
    return NumbersHaveValues() if on_meta else nullcontext()


def capture_layers(
    model: nn.Module, example_inputs: object = None, layers: LayerPatterns | None = None
) -> list[LayerCall]:
    """The layers' calls in the order in which the model makes them, those that `layers` names or those that are found.

    Raises UnsupportedModelError if there are none, or if what is named is none, TraceError if the model does not run on
    the example inputs.
    """
    args, kwargs = call_arguments(model, example_inputs)
    kwargs = without_cache(model, kwargs)
    if layers is not None:
        return _named(model, layers, args, kwargs)
    lists: list[LayerCall] = []
    for way in WAYS:
        found = _looked_for(way, model, args, kwargs)
        if way is WAYS[0]:
            lists = found
            if _is_chain(found):
                return found
        elif found and all(any(_inside(inner, outer) for outer in found) for inner in lists):
            return found  # what the lists held lies in these: experts, for one
    if not lists:
        raise UnsupportedModelError(_no_layers(model))
    return lists


def _looked_for(way: Way, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LayerCall]:
    candidates = way.candidates(model)
    if not candidates:
        return []
    recording, reads = _observe(model, candidates, args, kwargs)
    return _with_reads(layer_calls(way.choose(recording), recording), recording, reads)


def _named(model: nn.Module, layers: LayerPatterns, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LayerCall]:
    recording, reads = _observe(model, named_modules(model, layers), args, kwargs, any_output=True)
    check_named(model, recording)
    return _with_reads(layer_calls(recording.candidates, recording), recording, reads)


def _observe(
    model: nn.Module,
    candidates: dict[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    any_output: bool = False,
) -> tuple[Recording, Reads]:
    def run() -> Recording:
        recorded = recorded_calls(candidates, any_output, not asks_for_cache(args, kwargs))
        with recorded as (recording, watch), values_on_meta(model), compiled_parts() as compiled:
            watch.read(model(*copy.copy(args), **kwargs))
        if compiled:
            assume_all_is_read(recording)
        return recording

    def steady() -> Recording:
        """As the model runs from its second time on, if a layer does more than to return something."""
        before = HeldState(model, args, kwargs)
        recording = run()
        if not _does_more(recording):
            return recording
        once = HeldState(model, args, kwargs)
        recording = run()
        changes = once.changes()
        once.put_back()
        before.put_back(changes)
        return recording

    with run_quietly(model):
        try:
            with recorded_reads(candidates) as reads:
                return steady(), reads
        except Exception:  # such as of the body of a loop or a branch, in which nothing may be noted
            log.debug("what the layers read could not be noted", exc_info=True)
        try:
            return steady(), all_attributes(candidates)
        except Exception as error:
            error.add_note(f"while `{type(model).__name__}` ran on the example inputs of estfx, in training mode")
            raise TraceError(f"`{type(model).__name__}` does not run on the example inputs: {error}") from error


def _does_more(recording: Recording) -> bool:
    """Whether a call leaves anything beside its result."""
    return any(o.call is not None and (o.call.written or o.call.lost) for o in recording.calls)


def _with_reads(calls: list[LayerCall], recording: Recording, reads: Reads) -> list[LayerCall]:
    for call in calls:
        call.attributes = {path: names for path, names in reads[call.path].items() if names}
    for call in calls:
        if call.number == 2:
            _refuse_changes(call, recording)
    return calls


def _refuse_changes(call: LayerCall, recording: Recording) -> None:
    """Raises TraceError if a module reads an attribute that is another at another of its calls."""
    first, *others = (observed.state for observed in recording.calls if observed.path == call.path)
    for path, names in call.attributes.items():
        for name in sorted(names & first[path].keys()):
            values = [first[path][name], *(state[path].get(name) for state in others)]
            if any(type(value) is not type(values[0]) or value != values[0] for value in values):
                attribute = f"{path}.{name}" if path else name
                raise TraceError(
                    f"layer `{call.path}` is called {len(values)} times in a forward, and reads its attribute "
                    f"`{attribute}`, which is not the same each time ({', '.join(map(repr, values[:4]))}). Its graph "
                    "would hold one value for all calls: give the value as an argument of the call."
                )


def _is_chain(calls: list[LayerCall]) -> bool:
    """Whether any call is given what another returned; of one call there is nothing to be told."""
    given = {id(flatten(call.args, call.kwargs)[0][call.stream_leaf]) for call in calls}
    return len(calls) == 1 or any(id(call.outputs[call.stream_output]) in given for call in calls)


def _inside(inner: LayerCall, outer: LayerCall) -> bool:
    return any(module is inner.module for module in outer.module.modules())


def _no_layers(model: nn.Module) -> str:
    lists = sorted(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    what = f"none of its ModuleLists ({', '.join(lists)}) holds" if lists else "it has no nn.ModuleList that holds"
    return (
        f"no layers found in `{type(model).__name__}`: {what} modules that map a residual stream to its own shape, and "
        "no other siblings of it do so in a chain. Put the layers into an nn.ModuleList and let each take the stream "
        f'and return it, or name them with layers="blocks.*". {looks_like_layers(model)}'
    )
