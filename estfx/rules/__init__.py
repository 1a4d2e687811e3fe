"""How ATen operators relate the dimensions of what they read and give, one file for each family of operators."""

from estfx.rules import (
    attention,
    contractions,
    convolutions,
    cuts,
    elementwise,
    experts,
    factories,
    lookups,
    reductions,
    shapes,
)

__all__ = [
    "attention",
    "contractions",
    "convolutions",
    "cuts",
    "elementwise",
    "experts",
    "factories",
    "lookups",
    "reductions",
    "shapes",
]
