"""estfx: train a part of a decoder, and let it grow until it is the whole (Evolving Subnetwork Training).

All that users call is here; it is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from estfx.cutting_entry import build_cuts
from estfx.lazy_names import lazy_names
from estfx.moved_modules import MOVED, tell_of_moved_modules

if TYPE_CHECKING:
    from estfx.axes import Resize as Resize
    from estfx.axes import Walk as Walk
    from estfx.axes import resizer as resizer
    from estfx.axes import rule as rule
    from estfx.costs import Plan as Plan
    from estfx.costs import StagePlan as StagePlan
    from estfx.costs import plan as plan
    from estfx.costs import schedule_for_saving as schedule_for_saving
    from estfx.cutting import CutRecord as CutRecord
    from estfx.cutting import cut as cut
    from estfx.cutting import cut_record as cut_record
    from estfx.cutting import load as load
    from estfx.cutting import reform as reform
    from estfx.cutting import save as save
    from estfx.dumping import dump as dump
    from estfx.dumping import load_graphs as load_graphs
    from estfx.ensembles import Ensemble as Ensemble
    from estfx.ensembles import calibration_error as calibration_error
    from estfx.ensembles import children as children
    from estfx.errors import EstfxError as EstfxError
    from estfx.errors import ScheduleError as ScheduleError
    from estfx.errors import TraceError as TraceError
    from estfx.errors import UnsupportedModelError as UnsupportedModelError
    from estfx.errors import VerifyError as VerifyError
    from estfx.evolving import EvolvingModel as EvolvingModel
    from estfx.evolving import evolving_within as evolving_within
    from estfx.integrations import ddp_hook as ddp_hook
    from estfx.integrations import initialise_optimizer as initialise_optimizer
    from estfx.programs import load_compiled as load_compiled
    from estfx.programs import save_compiled as save_compiled
    from estfx.report import AxisReport as AxisReport
    from estfx.report import LayerReport as LayerReport
    from estfx.report import Report as Report
    from estfx.report import inspect as inspect
    from estfx.schedules import Draw as Draw
    from estfx.schedules import Schedule as Schedule
    from estfx.schedules import Stage as Stage
    from estfx.schedules import Subnetwork as Subnetwork
    from estfx.schedules import draw_units as draw_units
    from estfx.schedules import kept_count as kept_count
    from estfx.schedules import selection_policy as selection_policy
    from estfx.scoring import Scores as Scores
    from estfx.scoring import score as score
    from estfx.searching import SearchResult as SearchResult
    from estfx.searching import search as search
    from estfx.stitching import Palette as Palette
    from estfx.stitching import Stitched as Stitched
    from estfx.stitching import stitch as stitch
    from estfx.tracing import Decoder as Decoder
    from estfx.tracing import trace as trace
    from estfx.transformation import restore as restore
    from estfx.transformation import transform as transform

_MODULES = {
    "AxisReport": "estfx.report",
    "CutRecord": "estfx.cutting",
    "Decoder": "estfx.tracing",
    "Draw": "estfx.schedules",
    "Ensemble": "estfx.ensembles",
    "EstfxError": "estfx.errors",
    "EvolvingModel": "estfx.evolving",
    "LayerReport": "estfx.report",
    "Palette": "estfx.stitching",
    "Plan": "estfx.costs",
    "Report": "estfx.report",
    "Resize": "estfx.axes",
    "Schedule": "estfx.schedules",
    "ScheduleError": "estfx.errors",
    "Scores": "estfx.scoring",
    "SearchResult": "estfx.searching",
    "Stage": "estfx.schedules",
    "StagePlan": "estfx.costs",
    "Stitched": "estfx.stitching",
    "Subnetwork": "estfx.schedules",
    "TraceError": "estfx.errors",
    "UnsupportedModelError": "estfx.errors",
    "VerifyError": "estfx.errors",
    "Walk": "estfx.axes",
    "calibration_error": "estfx.ensembles",
    "children": "estfx.ensembles",
    "cut": "estfx.cutting",
    "cut_record": "estfx.cutting",
    "ddp_hook": "estfx.integrations",
    "draw_units": "estfx.schedules",
    "dump": "estfx.dumping",
    "evolving_within": "estfx.evolving",
    "initialise_optimizer": "estfx.integrations",
    "inspect": "estfx.report",
    "kept_count": "estfx.schedules",
    "load": "estfx.cutting",
    "load_compiled": "estfx.programs",
    "load_graphs": "estfx.dumping",
    "plan": "estfx.costs",
    "reform": "estfx.cutting",
    "resizer": "estfx.axes",
    "restore": "estfx.transformation",
    "rule": "estfx.axes",
    "save": "estfx.cutting",
    "save_compiled": "estfx.programs",
    "schedule_for_saving": "estfx.costs",
    "score": "estfx.scoring",
    "search": "estfx.searching",
    "selection_policy": "estfx.schedules",
    "stitch": "estfx.stitching",
    "trace": "estfx.tracing",
    "transform": "estfx.transformation",
}
__all__ = [
    "AxisReport",
    "CutRecord",
    "Decoder",
    "Draw",
    "Ensemble",
    "EstfxError",
    "EvolvingModel",
    "LayerReport",
    "Palette",
    "Plan",
    "Report",
    "Resize",
    "Schedule",
    "ScheduleError",
    "Scores",
    "SearchResult",
    "Stage",
    "StagePlan",
    "Stitched",
    "Subnetwork",
    "TraceError",
    "UnsupportedModelError",
    "VerifyError",
    "Walk",
    "calibration_error",
    "children",
    "cut",
    "cut_record",
    "ddp_hook",
    "draw_units",
    "dump",
    "evolving_within",
    "initialise_optimizer",
    "inspect",
    "kept_count",
    "load",
    "load_compiled",
    "load_graphs",
    "plan",
    "reform",
    "resizer",
    "restore",
    "rule",
    "save",
    "save_compiled",
    "schedule_for_saving",
    "score",
    "search",
    "selection_policy",
    "stitch",
    "trace",
    "transform",
]
__version__ = "0.1.0"

tell_of_moved_modules()
build_cuts()
if not TYPE_CHECKING:  # a type checker would take any name for a public one
    __getattr__, __dir__ = lazy_names(__name__, _MODULES, MOVED)
