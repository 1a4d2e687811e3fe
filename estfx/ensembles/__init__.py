"""Several parts of one model, each tuned by itself, that answer together.

In go a model and how much of it a child keeps; out come children, cut out as models of their own, and an `Ensemble`.
"""

from estfx.ensembles.calibration import calibration_error
from estfx.ensembles.draw_children import children
from estfx.ensembles.ensemble import Ensemble

__all__ = ["Ensemble", "calibration_error", "children"]
