"""The scores of a model's units and layers, and the part of it that they say is best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from estfx.errors import EstfxError
from estfx.schedules import kept_count

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores:
    """How much each unit and each layer matters; the more, the higher."""

    by: str
    units: Mapping[str, Mapping[str, torch.Tensor]]  # layer → role → a number for each unit, float32, on the CPU
    layers: Mapping[str, float] = field(default_factory=dict)  # of those that may be left out
    order: tuple[str, ...] = ()  # all layers
    tokens: int = 0  # of calibration text that were looked at; 0: none is needed

    def best(
        self, heads: float = 1.0, neurons: float = 1.0, layers: float = 1.0, round_to: int = 1
    ) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
        """The units with the highest scores in each layer, and the layers, as `estfx.cut(model, units, layers=…)` takes
        them. Every layer keeps the same fraction; neurons in multiples of `round_to`, where there are as many.

        Raises EstfxError for a fraction that is none, and for layers of which there are no scores.
        """
        for name, fraction in (("heads", heads), ("neurons", neurons), ("layers", layers)):
            if not 0 < fraction <= 1:
                raise EstfxError(
                    f"{name}={fraction}: a fraction of what is kept lies above 0 and is 1 at most; with 0 nothing "
                    "would be left."
                )
        if layers < 1 and not self.layers:
            raise EstfxError(
                "there are no scores of layers: no layer of this model may be left out, or none was looked at. Score "
                "it with calibration batches and layers_by='influence' or 'loss', or keep all layers."
            )
        number = kept_count(len(self.layers), layers) if self.layers else 0
        ranked = sorted(self.layers, key=lambda name: (-self.layers[name], self.order.index(name)))
        left_out = set(ranked[number:])
        staying = [name for name in self.order if name not in left_out]
        units: dict[str, dict[str, list[int]]] = {}
        for name in staying:
            for role, scores in self.units.get(name, {}).items():
                is_neurons = role.split("_")[0] == "neurons"
                multiple = round_to if is_neurons and len(scores) >= round_to else 1
                count = kept_count(len(scores), neurons if is_neurons else heads, multiple)
                if count < len(scores):
                    best = torch.argsort(scores, descending=True, stable=True)[:count]
                    units.setdefault(name, {})[role] = sorted(best.tolist())
        return units, staying

    def save(self, path: str | Path) -> None:
        """Writes them as JSON."""
        data = {
            "by": self.by,
            "tokens": self.tokens,
            "order": list(self.order),
            "layers": dict(self.layers),
            "units": {n: {role: scores.tolist() for role, scores in roles.items()} for n, roles in self.units.items()},
        }
        Path(path).write_text(json.dumps(data) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Reads what `save` has written. Raises EstfxError if it is none."""
        try:
            data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            units = {n: {r: torch.tensor(x) for r, x in roles.items()} for n, roles in data["units"].items()}
            return Scores(data["by"], units, data["layers"], tuple(data["order"]), data["tokens"])
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise EstfxError(f"`{path}` holds no scores of estfx: {type(error).__name__}: {error}.") from error
