"""The whole model as oracle: with everything kept and uncompiled, a transformed model does what the original does.

Both run twice in a row on the example inputs, forwards and backwards, from the same random state. Every output, every
parameter's gradient, every buffer and whatever a forward pass leaves in attributes, lists and globals is compared. The
second run finds what the first has left behind.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.mounting.observations import Fingerprint, Observations, kept
from estfx.programs import direction
from estfx.runtime import Mount, Runtime, StepState
from estfx.tracing import (
    ATTRIBUTE,
    HeldState,
    call_arguments,
    open_dataclasses,
    run_quietly,
    values_on_meta,
    without_cache,
    without_empty_caches,
)

__all__ = [
    "guilty_layers",
    "in_a_line",
    "observed",
    "what_differs",
    "why_not_observed",
]

RUNS = 2


def why_not_observed(model: nn.Module) -> str:
    """Why a model cannot be its own oracle; empty if it can."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return "the whole model was not verified: its weights are on the meta device"
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        return "the whole model was not verified: its parameters are in shards"
    return ""


def observed(
    model: nn.Module, example_inputs: object, layers: Collection[nn.Module] = (), runs: int = RUNS
) -> Observations:
    """What the model gives and leaves behind in training mode, in so many runs; afterwards all is as it was.

    Its layers are given no empty KV cache, as in training: a layer that fills one may round otherwise.
    """
    args, kwargs = call_arguments(model, example_inputs)
    kwargs = without_cache(model, kwargs)
    kwargs = _with_labels(model, args, kwargs)
    held = HeldState(model, args, kwargs)
    with run_quietly(model), _gradients_apart(model) as gradients, ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(without_empty_caches, with_kwargs=True).remove)
        try:
            return [_run(model, args, kwargs, gradients, held) for _ in range(runs)]
        finally:
            held.put_back()


def what_differs(
    model: nn.Module, runtime: Runtime, example_inputs: object, differs: Callable[[Observations], list[str]]
) -> list[str]:
    """What the transformed model, with everything kept, does otherwise than the original; an error is such a thing."""
    try:
        with _everything_kept(runtime):
            layers = [model.get_submodule(path) for path in runtime.layers.module_paths]
            return differs(observed(model, example_inputs, layers))
    except Exception as error:
        return [f"it fails with {in_a_line(error)}"]


def in_a_line(error: Exception) -> str:
    """An error's type, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@contextmanager
def _everything_kept(runtime: Runtime) -> Iterator[None]:
    """Within it the model trains whole, by uncompiled graphs, with its own loss."""
    step, layers, fuses_loss = runtime.in_force(), runtime.layers, runtime.fuses_loss
    whole = {name: {role: np.arange(n) for role, n in layer.sizes.items()} for name, layer in layers.drawn.items()}
    running = dict.fromkeys(layers.kinds, True)
    state = StepState(0, 0, runtime.schedule.stages[0], running, whole, layers.counts(whole))
    runtime.layers, runtime.fuses_loss = replace(layers, compiler=None), False
    runtime.put_in_force((state, 0, {}, None))
    try:
        yield
    finally:
        runtime.put_in_force(step)
        runtime.layers, runtime.fuses_loss = layers, fuses_loss


def guilty_layers(
    model: nn.Module,
    runtime: Runtime,
    example_inputs: object,
    differs: Callable[[Observations], list[str]],
) -> dict[str, list[str]]:
    """The modules of layers with which alone the model differs from the original, by path, and what differs."""
    found: dict[str, list[str]] = {}
    mounts: dict[str, Mount] = {
        path: vars(model.get_submodule(path))[ATTRIBUTE] for path in runtime.layers.module_paths
    }
    for path in mounts:
        with ExitStack() as stack:
            for other, here in mounts.items():
                if other != path:
                    stack.enter_context(here.bypassed())
            what = what_differs(model, runtime, example_inputs, differs)
        if what:
            found[path] = what
    return found


def _with_labels(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """With token ids as labels too, if the model takes labels, so that its loss is seen."""
    tokens = kwargs.get("input_ids")
    if args or tokens is None or kwargs.get("labels") is not None:
        return kwargs
    takes = "labels" in inspect.signature(type(model).forward).parameters
    return {**kwargs, "labels": tokens} if takes and hasattr(model, "loss_function") else kwargs


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[dict[str, torch.Tensor | Fingerprint]]:
    """Collects what is kept of gradients as they come; gradients that are there already stay as they are."""
    found: dict[str, torch.Tensor | Fingerprint] = {}
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.grad for name, parameter in learning.items()}
    with ExitStack() as stack:
        for name, parameter in learning.items():
            parameter.grad = None

            def note(p: torch.Tensor, name: str = name) -> None:
                if p.grad is not None:
                    found[f"the gradient of {name}"] = kept(p.grad)
                    p.grad = None

            stack.callback(parameter.register_post_accumulate_grad_hook(note).remove)
        try:
            yield found
        finally:
            for name, parameter in learning.items():
                parameter.grad = before[name]


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gradients: dict[str, torch.Tensor | Fingerprint],
    held: HeldState,
) -> dict[str, Any]:
    gradients.clear()
    torch.manual_seed(0)
    with torch.enable_grad(), values_on_meta(model):
        result = model(*copy.copy(args), **kwargs)
        open_dataclasses(result)
        named = pytree.tree_flatten_with_path(result)[0]
        seen: dict[str, Any] = {}
        score: torch.Tensor | None = None
        for path, leaf in named:
            name = f"output{pytree.keystr(path)}"
            if not isinstance(leaf, torch.Tensor):
                continue
            seen[name] = kept(leaf)
            if leaf.requires_grad and leaf.is_floating_point() and leaf.numel():
                part = (leaf * direction(leaf)).sum().float()
                score = part if score is None else score + part
        if score is not None:
            score.backward()
    seen.update(gradients)
    for name, buffer in model.named_buffers():
        seen[f"the buffer {name}"] = kept(buffer)
    for change in held.changes():
        for number, leaf in enumerate(pytree.tree_leaves(change.value)):
            if isinstance(leaf, torch.Tensor):
                seen[f"what is left in {change.place}, {number}"] = kept(leaf)
            elif isinstance(leaf, (bool, int, float, str)):
                seen[f"what is left in {change.place}, {number}"] = leaf
    return seen
