"""Programs: the graph of a layer for one call signature, narrowed for a stage, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from estfx.graphs import clone, opaque_modules, run_passes, tags
from estfx.passes import analysis, specialisation
from estfx.programs.compilation import Compiler
from estfx.tracing import TracedLayer, held_at

__all__ = ["Program", "Variant", "analysed", "in_clean_thread", "numbers_at_work", "resolve"]

NONE: Mapping[str, Any] = {}  # an object that a layer holds need be no module
T = TypeVar("T")
Counts = tuple[tuple[str, int], ...]  # (role, units kept), sorted, whole ones left out


def resolve(module: nn.Module, path: str) -> torch.Tensor:
    """The tensor at a path in a layer, whatever stands there now: a parameter, a buffer, or one that it just holds."""
    if "[" in path:
        return held_at(module, path)  # type: ignore[no-any-return]
    *owners, name = path.split(".")
    for owner in owners:  # past the modules' own __getattr__, which takes ten times as long
        inner = module.__dict__.get("_modules", NONE).get(owner)
        module = getattr(module, owner) if inner is None else inner
    parameter: torch.Tensor | None = module.__dict__.get("_parameters", NONE).get(name)
    found: torch.Tensor = getattr(module, name) if parameter is None else parameter
    return found


@torch.compiler.disable  # type: ignore[untyped-decorator]  # dynamo 2.11 would warn of the queue of a thread
def in_clean_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread of its own, which has none of this one's grad mode, autocast, checkpointing and
    other modes: a graph must not depend on them, nor they see what is computed to make it.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result()


def numbers_at_work(graph: GraphModule) -> dict[str, int]:
    """How many numbers of each weight a graph reads, by the weight's path in the layer.

    Of weights that a unit has alone, such as those of heads in modules of their own, as if the first units were kept.
    """
    indices = tags.get(graph, tags.Indices, tags.Indices())
    lengths = {g.placeholder: g.dim.narrowed_size(indices.kept) for g in indices.gathers}
    narrowed: dict[str, dict[int, int]] = {}
    for path, dim, placeholder in indices.weights:
        narrowed.setdefault(path, {})[dim] = lengths[placeholder]
    alone = {path: number < lengths[placeholder] for path, number, placeholder in indices.of_one_unit}
    shapes = {n.name: n.meta["val"].shape for n in graph.graph.nodes if n.op == "placeholder"}
    return {
        path: prod(narrowed.get(path, {}).get(dim, size) for dim, size in enumerate(shapes[name])) * alone.get(path, 1)
        for name, path in tags.get(graph, tags.Interface).weights
    }


@dataclass(frozen=True)
class Program:
    """A graph for one kind of layer, one signature and one set of counts; all layers of the kind share it."""

    graph: GraphModule
    call: Callable[..., tuple[torch.Tensor, ...]]
    gathers: tuple[tags.Gather, ...]
    units: tuple[tuple[str, Any], ...]  # (role, axis) of what is narrowed
    weights: tuple[str, ...]  # paths, in the order of the graph's inputs

    @cached_property
    def numbers_at_work(self) -> dict[str, int]:
        """How many numbers of each weight take part, by its path."""
        return numbers_at_work(self.graph)

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
    scales: bool = True  # sums over kept units, by total / kept
    programs: dict[tuple[Counts, bool], Program] = field(default_factory=dict)  # and whether they are compiled

    @cached_property
    def writes_in_place(self) -> bool:
        """Whether the graph may write into its stream."""
        schemas = (getattr(n.target, "_schema", None) for n in self.traced.graph.graph.nodes)
        return any(schema is not None and schema.is_mutable for schema in schemas)

    def passed_over(self, leaves: list[Any]) -> Any:
        """What a layer gives for a call with these leaves when it is skipped: its stream, or nothing to be added."""
        stream = leaves[self.traced.stream_leaf]
        return self.traced.give(torch.zeros_like(stream) if self.residuals.outside else stream)

    @property
    def axes(self) -> tags.Axes:
        return tags.get(self.traced.graph, tags.Axes)

    def narrowed(self, counts: Counts) -> GraphModule:
        """The graph with that many units kept of each role; uncompiled."""
        wanted = dict(counts)
        kept = {role.axis: wanted[role.name] for role in self.roles.found if role.name in wanted}
        return run_passes(clone(self.traced.graph), specialisation(kept, scaled=self.scales))

    def program(self, counts: Counts, compiler: Compiler | None) -> Program:
        key = (counts, compiler is not None)
        if key not in self.programs:
            graph = in_clean_thread(self.narrowed, counts)
            indices = tags.get(graph, tags.Indices)
            self.programs[key] = Program(
                graph=graph,
                call=graph if compiler is None else compiler.program(graph),
                gathers=indices.gathers,
                units=tuple((role.name, role.axis) for role in self.roles.found if role.axis in indices.kept),
                weights=tuple(path for _, path in tags.get(graph, tags.Interface).weights),
            )
        return self.programs[key]


def analysed(traced: TracedLayer, *, scales: bool = True) -> Variant:
    graph = run_passes(traced.graph, analysis())
    roles = tags.get(graph, tags.Roles)
    opaque = dict.fromkeys(
        f"`{each.path}` ({type(each.module).__name__}) runs as it is, always whole: {each.reason}"
        for each in opaque_modules(graph)
    )
    left = [f"what it leaves in {place} has zeros for units that do not run" for place in _left_units(traced, roles)]
    return Variant(
        traced, replace(roles, notes=(*roles.notes, *opaque, *left)), tags.get(graph, tags.Residuals), scales
    )


def _left_units(traced: TracedLayer, roles: tags.Roles) -> list[str]:
    """The places in which a layer leaves values of units that may be left out, with the names of the units."""
    axes, interface = tags.get(traced.graph, tags.Axes), tags.get(traced.graph, tags.Interface)
    outputs: Any = traced.graph.graph.output_node().args[0]
    names = {role.axis: role.name for role in roles.found}
    given = [axis for i in interface.left for dim in axes.dims[outputs[i].name] for axis in dim.axes()]
    units = dict.fromkeys(names[axis] for axis in given if axis in names)
    places = ", ".join(f"`{place}`" for place in traced.written)
    return [f"{places} ({', '.join(units)})"] if units else []
