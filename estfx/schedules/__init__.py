"""Stages, presets and draws: pure functions of the schedule, the seed and the step.

In go a schedule, a seed, a step and what there is to draw; out comes which layers and units that step trains. What
needs torch is loaded when it is first asked for: a schedule can be read and refused without it.
"""

from typing import TYPE_CHECKING

from estfx.lazy_names import lazy_names
from estfx.schedules.draws import CYCLE, SCORES, Draw, PolicyName, Scores, draw_units, selection_policy
from estfx.schedules.measured_losses import (
    FittedLaw,
    KindOfRun,
    MeasuredLoss,
    MeasuredLosses,
    MeasuredRun,
    measured_losses,
)
from estfx.schedules.preset_by_name import PRESETS, default_preset, preset_of, preset_schedule, schedule_rules
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Count, Fraction, Share, Stage, kept_count

if TYPE_CHECKING:
    from estfx.schedules.step_draw import DrawnLayer as DrawnLayer
    from estfx.schedules.step_draw import StepDraw as StepDraw
    from estfx.schedules.step_draw import UnitScores as UnitScores
    from estfx.schedules.step_draw import draw_step as draw_step
    from estfx.schedules.step_draw import layers_of_stage as layers_of_stage
    from estfx.schedules.step_draw import units_kept as units_kept
    from estfx.schedules.step_draw import widths_of_layers as widths_of_layers
    from estfx.schedules.subnetwork import Subnetwork as Subnetwork

_MODULES = {
    "DrawnLayer": "estfx.schedules.step_draw",
    "StepDraw": "estfx.schedules.step_draw",
    "Subnetwork": "estfx.schedules.subnetwork",
    "UnitScores": "estfx.schedules.step_draw",
    "draw_step": "estfx.schedules.step_draw",
    "layers_of_stage": "estfx.schedules.step_draw",
    "units_kept": "estfx.schedules.step_draw",
    "widths_of_layers": "estfx.schedules.step_draw",
}
__all__ = [
    "CYCLE",
    "PRESETS",
    "SCORES",
    "Count",
    "Draw",
    "DrawnLayer",
    "FittedLaw",
    "Fraction",
    "KindOfRun",
    "MeasuredLoss",
    "MeasuredLosses",
    "MeasuredRun",
    "PolicyName",
    "Schedule",
    "Scores",
    "Share",
    "Stage",
    "StepDraw",
    "Subnetwork",
    "UnitScores",
    "default_preset",
    "draw_step",
    "draw_units",
    "kept_count",
    "layers_of_stage",
    "measured_losses",
    "preset_of",
    "preset_schedule",
    "schedule_rules",
    "selection_policy",
    "units_kept",
    "widths_of_layers",
]

if not TYPE_CHECKING:  # a type checker would take any name for a door
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
