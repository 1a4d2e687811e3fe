"""Kinds of layers and the programs that they run: graphs made for a call signature, narrowed for a stage, compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from estfx import tags
from estfx.capture import LayerCall, run_quietly
from estfx.errors import TraceError
from estfx.export import TracedLayer, trace_call
from estfx.graphs import clone
from estfx.layer_calls import outcome
from estfx.passes import analysis, specialisation
from estfx.pipeline import run_passes
from estfx.signature import Signature, as_in, flatten, signature_of

__all__ = ["Kind", "Program", "Variant", "resolve"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Counts = tuple[tuple[str, int], ...]  # (role, units kept), sorted, whole ones left out


def resolve(module: nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a dotted path, whatever stands there now."""
    *owners, name = path.split(".")
    for owner in owners:
        module = getattr(module, owner)
    found: torch.Tensor = getattr(module, name)
    return found


def in_clean_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread of its own, which has none of this one's grad mode, autocast, checkpointing and
    other modes: a graph must not depend on them, nor they see what is computed to make it.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result()


@dataclass(frozen=True)
class Program:
    """A graph for one kind of layer, one signature and one set of counts; all layers of the kind share it."""

    graph: GraphModule
    call: Callable[..., tuple[torch.Tensor, ...]]
    gathers: tuple[tags.Gather, ...]
    units: tuple[tuple[str, Any], ...]  # (role, axis) of what is narrowed
    weights: tuple[str, ...]  # paths, in the order of the graph's inputs

    def indices(self, drawn: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Kept positions for each index input, `[layers, kept]`, from the drawn units by role, `[layers, units]`."""
        units = {axis: drawn[role] for role, axis in self.units}
        return [gather.dim.flat_index(units) for gather in self.gathers]


@dataclass
class Variant:
    """A kind's graph for one call signature, analysed, and the programs made from it."""

    traced: TracedLayer
    roles: tags.Roles
    residuals: tags.Residuals
    programs: dict[Counts, Program] = field(default_factory=dict)

    @cached_property
    def writes_in_place(self) -> bool:
        """Whether the graph may write into its stream."""
        schemas = (getattr(n.target, "_schema", None) for n in self.traced.graph.graph.nodes)
        return any(schema is not None and schema.is_mutable for schema in schemas)

    @property
    def axes(self) -> tags.Axes:
        return tags.get(self.traced.graph, tags.Axes)

    def narrowed(self, counts: Counts) -> GraphModule:
        """The graph with that many units kept of each role; uncompiled."""
        wanted = dict(counts)
        kept = {role.axis: wanted[role.name] for role in self.roles.found if role.name in wanted}
        return run_passes(clone(self.traced.graph), specialisation(kept))

    def program(self, counts: Counts, compiler: Callable[[GraphModule], Callable[..., Any]] | None) -> Program:
        if counts not in self.programs:
            graph = in_clean_thread(self.narrowed, counts)
            indices = tags.get(graph, tags.Indices)
            self.programs[counts] = Program(
                graph=graph,
                call=graph if compiler is None else compiler(graph),
                gathers=indices.gathers,
                units=tuple((role.name, role.axis) for role in self.roles.found if role.axis in indices.kept),
                weights=tuple(path for _, path in tags.get(graph, tags.Interface).weights),
            )
        return self.programs[counts]


def analysed(traced: TracedLayer) -> Variant:
    graph = run_passes(traced.graph, analysis())
    return Variant(traced, tags.get(graph, tags.Roles), tags.get(graph, tags.Residuals))


def signature_in(variant: Variant, call: LayerCall) -> Signature:
    """The signature of the call that a variant was made from."""
    leaves, spec = flatten(call.args, call.kwargs)
    paths = [path for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
    device = next(leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor))
    return signature_of(leaves, spec, device, tuple(resolve(call.module, path).dtype for path in paths))


@dataclass
class Kind:
    """Layers that run the same code on the same shapes."""

    name: str
    first: Variant  # as the model called the layer on the example inputs
    variants: dict[Signature, list[Variant]]
    lock: Any = field(default_factory=threading.Lock)

    def __deepcopy__(self, memo: dict[int, Any]) -> Kind:
        return self  # graphs and programs hold no state of the model

    def all_variants(self) -> list[Variant]:
        return [variant for variants in self.variants.values() for variant in variants]

    @cached_property
    def weight_paths(self) -> tuple[str, ...]:
        """The parameters and buffers that the kind's graph reads."""
        return tuple(path for _, path in tags.get(self.first.traced.graph, tags.Interface).weights)

    def variant(self, signature: Signature, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module) -> Variant:
        """The variant for a call; a new signature is traced, once for all layers of the kind."""
        for known in self.variants.get(signature, ()):
            if known.traced.accepts(leaves):
                return known
        with self.lock:
            made = in_clean_thread(self._trace, signature, leaves, spec, layer)
            self.variants.setdefault(signature, []).append(made)
        return made

    def _trace(self, signature: Signature, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module) -> Variant:
        with as_in(signature.autocast):
            return self._traced(signature, leaves, spec, layer)

    def _traced(self, signature: Signature, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module) -> Variant:
        log.info("tracing %s for a new call signature: %s", self.name, signature)
        detached = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(detached, spec)
        with run_quietly(layer):
            result = layer._estfx.original(layer, *args, **kwargs)  # type: ignore[union-attr, operator]
        before = pytree.tree_unflatten(detached, spec)
        outputs, out_spec, written = outcome(result, before, (args, kwargs))
        stream = self.first.traced.stream_leaf
        if stream >= len(leaves) or not isinstance(leaves[stream], torch.Tensor):
            shape = outputs[0].shape
            stream = next(i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.shape == shape)
        call = LayerCall(
            self.name, layer, before[0], before[1], stream, out_spec, outputs, self.first.traced.stream_output
        )
        call.written, call.operations = written, self.first.traced.operations
        call.alive = set(self.first.traced.alive)
        with layer._estfx.bypassed():  # type: ignore[union-attr, operator]
            made = analysed(trace_call(call))
        return self._same_roles(made)

    def _same_roles(self, made: Variant) -> Variant:
        """The roles that transform found must be there too, or a draw would mean nothing in this variant."""
        sizes = {role.name: role.axis.size for role in self.first.roles.found}
        for role in self.first.roles.found:
            twin = next((r for r in made.roles.found if r.axis.size == role.axis.size and r.name == role.name), None)
            if twin is None:
                raise TraceError(
                    f"layer kind {self.name} was called in a new way, in which its {role.name} ({role.axis.size}) "
                    f"cannot be narrowed: {'; '.join(made.roles.notes) or 'no such axis'}. Call the model as in the "
                    "example inputs, or pass example_inputs to transform that look like the training batches."
                )
        made.roles = replace(made.roles, found=tuple(role for role in made.roles.found if role.name in sizes))
        return made
