"""estfx: train a part of a decoder, and let it grow until it is the whole (Evolving Subnetwork Training)."""

from estfx.compilation import load_compiled, save_compiled
from estfx.draws import Draw, selection_policy
from estfx.dump import dump
from estfx.dumping.loading import load_graphs
from estfx.errors import EstfxError, ScheduleError, TraceError, UnsupportedModelError, VerifyError
from estfx.evolving import EvolvingModel
from estfx.plan import Plan, plan
from estfx.report import Report, inspect
from estfx.schedule import Schedule
from estfx.stage import Stage
from estfx.subnetwork import Subnetwork
from estfx.trace import Decoder, trace
from estfx.transform import restore, transform

__all__ = [
    "Decoder",
    "Draw",
    "EstfxError",
    "EvolvingModel",
    "Plan",
    "Report",
    "Schedule",
    "ScheduleError",
    "Stage",
    "Subnetwork",
    "TraceError",
    "UnsupportedModelError",
    "VerifyError",
    "dump",
    "inspect",
    "load_compiled",
    "load_graphs",
    "plan",
    "restore",
    "save_compiled",
    "selection_policy",
    "trace",
    "transform",
]
__version__ = "0.1.0"
