"""What is to be cut out of which model, and what the result must compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from estfx.cutting.cut_modules import cut_weights, new_names, places_left, renamed
from estfx.cutting.kept_parts import KeptParts
from estfx.cutting.layer_parts import LayerPart, layer_parts
from estfx.cutting.masked_whole import as_masked_whole, cached_outputs_of, outputs_of, worst_difference
from estfx.errors import UnsupportedModelError
from estfx.programs import Variant
from estfx.tracing import Decoder, default_inputs

__all__ = ["CutTask"]

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of a whole model's outputs, relative to the largest
COARSE = 0.1  # likewise, of smaller types; single layers are compared in float64 besides


@dataclass(frozen=True)
class CutTask:
    """A model, what is known of it, and what is to stay of it."""

    decoder: Decoder
    variants: Mapping[str, Variant]
    kept: KeptParts
    parts: Mapping[str, LayerPart] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", layer_parts(self.decoder, self.variants, self.kept))

    @property
    def model(self) -> nn.Module:
        """The whole one."""
        return self.decoder.model

    @cached_property
    def on_meta(self) -> bool:
        """Whether there are no numbers to compute with."""
        return any(parameter.device.type == "meta" for parameter in self.model.parameters())

    @cached_property
    def dropped(self) -> tuple[str, ...]:
        """The paths of the modules of which no call is left."""
        infos = self.decoder.infos
        staying = {infos[name].call.path if name in infos else name for name in self.kept.layers}
        gone = dict.fromkeys(infos[name].call.path for name in self.kept.dropped)
        for path in gone:
            if path in staying:
                raise UnsupportedModelError(
                    f"layer `{path}` is called several times in a forward: keep all of its calls, or none."
                )
        return tuple(gone)

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """For each layer behind one that is dropped, the path that it had, and the one that it has in the cut."""
        return new_names(self.model, self.dropped)

    def path_in_cut(self, part: LayerPart) -> str:
        """Where a layer is in the cut."""
        return renamed(part.path, self.names)

    @cached_property
    def modules(self) -> tuple[LayerPart, ...]:
        """A part for each module that stays, once for those that are called several times."""
        return tuple({part.path: part for part in self.parts.values()}.values())

    @cached_property
    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """By the path of each list of layers of which some are dropped: their number, and the positions that stay."""
        return places_left(self.model, self.dropped)

    @cached_property
    def remaining(self) -> dict[str, torch.Tensor]:
        """The whole weights of what stays, by their names in the cut."""
        gone = tuple(f"{path}." for path in self.dropped)
        state = self.model.state_dict(keep_vars=True)
        return {renamed(n, self.names): tensor for n, tensor in state.items() if not (gone and n.startswith(gone))}

    @cached_property
    def weights(self) -> dict[int, torch.Tensor]:
        """What takes the place of each weight that changes, by the identity of that."""
        return cut_weights(self.model, self.parts)

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The cut's weights by name; one tensor for those that are shared."""
        return {name: self.weights.get(id(tensor), tensor) for name, tensor in self.remaining.items()}

    @cached_property
    def sizes(self) -> frozenset[tuple[int, int]]:
        """Of dimensions of any layer that became narrower, before and now."""
        return frozenset().union(*(part.sizes for part in self.parts.values()))

    @cached_property
    def unit_sizes(self) -> frozenset[int]:
        """How many rows or columns a unit has."""
        return frozenset(
            before // role.axis.size
            for part in self.parts.values()
            for role in part.variant.roles.found
            if role.name in part.units
            for before, _ in part.sizes
            if before % role.axis.size == 0 and before > role.axis.size
        )

    @cached_property
    def want(self) -> list[torch.Tensor]:
        """What the masked whole gives for the example inputs; nothing on the meta device."""
        if self.on_meta:
            return []
        with as_masked_whole(self.decoder, self.variants, self.parts, self.kept.dropped):
            return outputs_of(self.model, self.decoder.example_inputs)

    def outputs(self, made: nn.Module) -> list[torch.Tensor]:
        """What a cut gives for the example inputs."""
        return outputs_of(made, self.decoder.example_inputs)

    @cached_property
    def has_cache(self) -> bool:
        """Whether the whole model computes the same with a KV cache as without."""
        if self._cached is None:
            return False
        want = outputs_of(self.model, self._inputs)[0]
        return want.ndim == 3 and worst_difference([want[:, -1]], [self._cached]) <= self.tolerance

    @cached_property
    def _cached(self) -> torch.Tensor | None:
        """What the whole model gives with a KV cache; None if it does not run with one."""
        try:
            return cached_outputs_of(self.model, self._inputs)
        except Exception:  # whatever the model's own code raises
            return None

    @property
    def _inputs(self) -> Any:
        given = self.decoder.example_inputs
        return default_inputs(self.model) if given is None else given

    def error(self, made: nn.Module) -> float:
        """How far a cut's outputs are from those that are wanted, with a KV cache too; infinite if it does not run."""
        try:
            got = self.outputs(made)
            error = worst_difference(self.want, got)
            if self._cached is not None and error <= self.tolerance:
                cached = cached_outputs_of(made, self._inputs)  # a cut generates, if the whole does
                if cached is None:
                    return float("inf")
                if self.has_cache:
                    error = max(error, worst_difference([self.want[0][:, -1]], [cached]))
            return error
        except Exception:  # whatever the model's own code raises
            return float("inf")

    @cached_property
    def tolerance(self) -> float:
        """What such an error may be."""
        return max(TOLERANCE.get(x.dtype, COARSE) for x in self.want)

    def alone(self, part: LayerPart, units: Mapping[str, Any]) -> LayerPart:
        """The part of a layer with these units only."""
        kept = KeptParts((part.name,), (), {part.name: dict(units)}, self.kept.scales)
        return layer_parts(self.decoder, self.variants, kept)[part.name]
