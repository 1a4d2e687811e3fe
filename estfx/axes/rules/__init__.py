"""How operators relate the dimensions of what they read and give, one file for each family of ATen operators.

To import it fills the tables that a `Walk` looks into.
"""

from estfx.axes.rules import (
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
