"""A part of a model as a model of its own, with the model's own code.

In goes a decoder and what is to stay of it; out comes a smaller decoder of the same class, proved to compute what the
masked whole does.
"""

from estfx.cutting.cut_summary import CutRecord
from estfx.cutting.make_cut import cut, cut_record
from estfx.cutting.refit_weights import reform
from estfx.cutting.saved_cuts import load, save
from estfx.cutting.written_cut import as_it_was, cut_as_written

__all__ = ["CutRecord", "as_it_was", "cut", "cut_as_written", "cut_record", "load", "reform", "save"]
