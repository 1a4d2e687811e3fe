"""A kind of layers: a graph, found once and shared by them, for each way in which they are called."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.errors import TraceError
from estfx.graphs import as_in, tags
from estfx.programs.program import Variant, analysed, in_clean_thread, resolve
from estfx.tracing import (
    Changes,
    HeldState,
    LayerCall,
    Signature,
    canonical,
    changed_places,
    flatten,
    outcome,
    run_quietly,
    signature_of,
    trace_call,
)

__all__ = ["Kind"]

log = logging.getLogger(__name__)
REMEMBERED = 256  # calls
MANY = 6  # values of an argument, after which it is told that each has a graph of its own


def signature_in(variant: Variant, call: LayerCall) -> Signature:
    """The signature of the call that a variant was made from."""
    leaves, spec = flatten(call.args, call.kwargs)
    paths = [path for _, path in tags.get(variant.traced.graph, tags.Interface).weights]
    device = next(leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor))
    return signature_of(leaves, spec, device, tuple(resolve(call.module, path).dtype for path in paths))


def _devices(call: LayerCall) -> set[torch.device]:
    return {leaf.device for leaf in flatten(call.args, call.kwargs)[0] if isinstance(leaf, torch.Tensor)}


@dataclass
class Kind:
    """Layers that run the same code on the same shapes."""

    name: str
    first: Variant  # as the model called the layer on the example inputs
    examples: tuple[LayerCall, ...]  # the calls of its layers; from the first it was made
    verify: Callable[[Variant, LayerCall], list[str]] | None = (
        None  # for layers that were changed since; see verification
    )
    variants: dict[Signature, list[Variant]] = field(default_factory=dict)
    weight_paths: dict[Changes, tuple[str, ...]] = field(default_factory=dict)  # what a graph of the structure reads
    unread: dict[pytree.TreeSpec, frozenset[int]] = field(default_factory=dict)  # numbers whose value does not matter
    by_call: dict[Hashable, Variant] = field(default_factory=dict)  # what was found for exactly such a call
    told_of_many: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        placed = _devices(self.examples[0])
        for example in self.examples:
            if _devices(example) != placed:
                continue  # its constants lie elsewhere
            self._add(signature_in(self.first, example), self.first, self.first.traced.unread)

    def __deepcopy__(self, memo: dict[int, Any]) -> Kind:
        return self  # graphs and programs hold no state of the model

    def all_variants(self) -> list[Variant]:
        return list({id(v): v for variants in self.variants.values() for v in variants}.values())

    def of_structure(self, structure: Changes) -> Variant | None:
        """A variant for layers in which the same was changed, if any was called yet."""
        return next((vs[0] for signature, vs in self.variants.items() if signature.structure == structure), None)

    def variant(self, signature: Signature, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module) -> Variant:
        """The variant for a call; a new signature is traced, once for all layers of the kind."""
        found = self._known(signature, leaves)
        if found is None:
            with self.lock:
                if signature.structure not in self.weight_paths:
                    in_clean_thread(self._learn, signature.structure, leaves, layer)
                    paths = self.weight_paths[signature.structure]
                    signature = replace(signature, weights=tuple(resolve(layer, path).dtype for path in paths))
                found = self._known(signature, leaves)
                if found is None:
                    found = in_clean_thread(self._trace, signature, leaves, spec, layer)
                    self._add(signature, self._same(found) or found, found.traced.unread)
                    self._tell_of_many(signature)
        return found

    def _tell_of_many(self, last: Signature) -> None:
        """Says once that a number among the arguments is another at every call."""
        alike = [s for s in self.variants if s.spec is last.spec and s.structure == last.structure]
        if len(alike) < MANY or self.told_of_many:
            return
        places = [i for i, leaf in enumerate(last.leaves) if len({s.leaves[i] for s in alike}) >= MANY]
        numbers = [last.leaves[i] for i in places]
        if numbers:
            self.told_of_many = True
            log.warning(
                "layers of kind %s were called with %d values of one argument (the last is %s), and each has a graph "
                "of its own, which is traced and compiled. Give a value that changes as a tensor.",
                self.name,
                len(alike),
                ", ".join(str(key[-1]) if isinstance(key, tuple) else str(key) for key in numbers),
            )

    def remember(self, key: Hashable, variant: Variant) -> None:
        """Has `by_call` hold a variant, next to the last few hundred: sizes may be another at every step."""
        if len(self.by_call) >= REMEMBERED:
            self.by_call.clear()
        self.by_call[key] = variant

    def knows(self, signature: Signature, leaves: list[Any]) -> bool:
        """Whether there is a graph for a call already."""
        return self._known(signature, leaves) is not None

    def _known(self, signature: Signature, leaves: list[Any]) -> Variant | None:
        return next((known for known in self.variants.get(signature, ()) if known.traced.accepts(leaves)), None)

    def _add(self, signature: Signature, variant: Variant, unread: frozenset[int] = frozenset()) -> None:
        if unread or self.unread.get(signature.spec):
            self.unread[signature.spec] = unread & self.unread.get(signature.spec, unread)
            signature = signature.of_any(self.unread[signature.spec])
        self.by_call.clear()
        known = self.variants.setdefault(signature, [])
        if all(variant is not other for other in known):
            known.append(variant)
        paths = tuple(path for _, path in tags.get(variant.traced.graph, tags.Interface).weights)
        self.weight_paths.setdefault(signature.structure, paths)

    def _learn(self, structure: Changes, leaves: list[Any], layer: nn.Module) -> None:
        """Traces the example call on a layer that was changed since, and verifies what was found."""
        log.info("tracing %s anew, since it was changed: %s", self.name, ", ".join(changed_places(structure)))
        stream = leaves[self.first.traced.stream_leaf]
        given, spec = flatten(self.examples[0].args, self.examples[0].kwargs)
        dtype = given[self.first.traced.stream_leaf].dtype
        leaves = [
            leaf.to(stream.device, stream.dtype if leaf.dtype == dtype else leaf.dtype)
            if isinstance(leaf, torch.Tensor)
            else leaf
            for leaf in given
        ]
        made, call = self._traced(leaves, spec, layer, structure)
        if self.verify is not None:
            with layer._estfx.bypassed():  # type: ignore[union-attr, operator]
                for note in self.verify(made, call):
                    log.info("%s: %s", self.name, note)
            self._same_roles(made, structure)
        unread, made = made.traced.unread, self._same(made) or made
        self._add(replace(signature_in(made, call), structure=structure), made, unread)

    def _trace(self, signature: Signature, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module) -> Variant:
        log.info("tracing %s for a new call signature: %s", self.name, signature)
        with as_in(signature.autocast):
            made, _ = self._traced(leaves, spec, layer, signature.structure)
        if not made.traced.accepts(leaves):
            raise TraceError(
                f"the graph of layer kind {self.name} does not take the sizes that it was made for: "
                f"{'; '.join(made.traced.guards)}. Please report the model."
            )
        return made

    def _same(self, made: Variant) -> Variant | None:
        """A variant with the same graph on the same weights, whose programs are there already."""
        text, interface = canonical(made.traced), tags.get(made.traced.graph, tags.Interface)
        for known in self.all_variants():
            same_names = tags.get(known.traced.graph, tags.Interface) == interface
            if same_names and canonical(known.traced) == text:
                return known
        return None

    def _traced(
        self, leaves: list[Any], spec: pytree.TreeSpec, layer: nn.Module, structure: Changes
    ) -> tuple[Variant, LayerCall]:
        detached = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(detached, spec)
        here: Any = layer._estfx
        held = HeldState(layer, args, kwargs)
        with run_quietly(layer):
            result = here.original(layer, *args, **kwargs)
            changes = held.changes()
        held.put_back(changes)
        before = pytree.tree_unflatten(detached, spec)
        outputs, out_spec, written = outcome(result, changes)
        stream = self.first.traced.stream_leaf
        if stream >= len(leaves) or not isinstance(leaves[stream], torch.Tensor):
            shape = outputs[0].shape
            stream = next(i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.shape == shape)
        call = LayerCall(
            here.path, layer, before[0], before[1], stream, out_spec, outputs, self.first.traced.stream_output
        )
        call.written, call.lost = written, tuple(change.reason for change in changes if change.reason)
        call.operations = self.first.traced.operations
        call.alive = set(self.first.traced.alive)
        with here.bypassed():
            made = analysed(trace_call(call), scales=self.first.scales)
        self._same_roles(made, structure)
        return made, call

    def _same_roles(self, made: Variant, structure: Changes) -> None:
        """The roles that transform found must be there too, or a draw would mean nothing in this variant."""
        left = list(made.roles.found)
        found = []
        for role in self.first.roles.found:
            alike = [r for r in left if r.axis.size == role.axis.size and r.fraction == role.fraction]
            if not alike:
                raise TraceError(self._lost(role, made, structure))
            twin = next((r for r in alike if r.name == role.name), alike[0])
            left.remove(twin)
            found.append(replace(twin, name=role.name))
        made.roles = replace(made.roles, found=tuple(found))
        tags.put(made.traced.graph, made.roles)

    def _lost(self, role: tags.Role, made: Variant, structure: Changes) -> str:
        reasons = "; ".join(made.roles.notes) or "no such axis"
        if structure:
            return (
                f"a layer of kind {self.name} was changed since transform, and its {role.name} ({role.axis.size}) "
                f"cannot be narrowed now: {reasons}. Call estfx.restore(model), and transform it as it is now."
            )
        return (
            f"layer kind {self.name} was called in a new way, in which its {role.name} ({role.axis.size}) "
            f"cannot be narrowed: {reasons}. Call the model as in the example inputs, or pass example_inputs to "
            "transform that look like the training batches."
        )
