"""Search without training: which part of a model, of a given size, has the lowest loss.

In go a model, calibration text and a target; out comes a `SearchResult`, whose units and layers `estfx.cut` takes.
"""

from estfx.searching.search_model import search
from estfx.searching.search_result import SearchResult

__all__ = ["SearchResult", "search"]
