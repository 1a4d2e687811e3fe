"""The layers of a transformed model: their kinds, their modules, and the programs that they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from estfx.programs import Compiler, Counts, Kind, Program, Variant
from estfx.runtime.run_fingerprint import drawn_layers, drawn_of
from estfx.schedules import DrawnLayer
from estfx.tracing import ATTRIBUTE

__all__ = ["Drawn", "MountedLayers"]

Drawn = Mapping[str, Mapping[str, np.ndarray]]  # layer → role → units, of skipped layers too


@dataclass(frozen=True)
class MountedLayers:
    """The layers by name, in the order of the calls. Nothing here depends on the step."""

    kinds: Mapping[str, Kind]
    paths: Mapping[str, str]  # by layer name its module's: two for a module that is called twice
    compiler: Compiler | None = None

    @cached_property
    def drawn(self) -> dict[str, DrawnLayer]:
        """The layers as draws know them."""
        return drawn_layers(drawn_of(self.kinds), self.paths)

    @cached_property
    def module_paths(self) -> tuple[str, ...]:
        """The path of each module once, in the order of the calls."""
        return tuple(dict.fromkeys(self.paths.values()))

    def variant(self, name: str, module: nn.Module) -> Variant | None:
        """A variant for a layer's module as it is now; None if it was changed since, and was not called since."""
        return self.kinds[name].of_structure(vars(module)[ATTRIBUTE].changed)

    def variants(self, model: nn.Module) -> dict[str, Variant | None]:
        """That of each layer."""
        return {name: self.variant(name, model.get_submodule(path)) for name, path in self.paths.items()}

    def program(self, variant: Variant, counts: Counts) -> Program:
        """The compiled program of a variant for so many units."""
        return variant.program(counts, self.compiler)

    def counts(self, drawn: Drawn) -> dict[str, Counts]:
        """How many units of each role every layer keeps, whole ones left out."""
        return {name: self._counts(name, drawn[name]) for name in self.kinds}

    def _counts(self, name: str, drawn: Mapping[str, np.ndarray]) -> Counts:
        roles = self.kinds[name].first.roles.found
        kept = ((role.name, len(drawn[role.name])) for role in roles if len(drawn[role.name]) < role.axis.size)
        return tuple(sorted(kept))
