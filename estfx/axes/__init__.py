"""The algebra of dimensions: which dimensions of a layer graph are made of the same units.

In goes a layer graph; out comes each of its dimensions as axes, products and sums, by a `Walk` over it in which every
operator has a rule. The rules are in `estfx/axes/rules/`, a file for each family of operators.
"""

from estfx.axes import rules
from estfx.axes.linear_paths import linear_source
from estfx.axes.walk import FACTORIES, RESIZERS, RULES, Resize, Walk, entry, resizer, rule

__all__ = [
    "FACTORIES",
    "RESIZERS",
    "RULES",
    "Resize",
    "Walk",
    "entry",
    "linear_source",
    "resizer",
    "rule",
    "rules",
]
