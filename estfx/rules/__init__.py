"""How operators relate the dimensions of what they read and give, one file for each family of ATen operators.

`rule` and `resizer` register those of your own operators; `Walk` and `Resize` are what they are given.
"""

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
from estfx.walk import Arguments, Dims, Resize, Walk, resizer, rule

__all__ = [
    "Arguments",
    "Dims",
    "Resize",
    "Walk",
    "attention",
    "contractions",
    "convolutions",
    "cuts",
    "elementwise",
    "experts",
    "factories",
    "lookups",
    "reductions",
    "resizer",
    "rule",
    "shapes",
]
