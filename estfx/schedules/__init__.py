"""Stages, presets and draws: pure functions of the schedule, the seed and the step.

In go a schedule, a seed, a step and what there is to draw; out comes which layers and units that step trains.
"""

from estfx.schedules.draws import SCORES, Draw, PolicyName, Scores, draw_units, selection_policy
from estfx.schedules.preset_by_name import PRESETS, default_preset, preset_schedule
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Count, Fraction, Share, Stage, kept_count
from estfx.schedules.step_draw import (
    DrawnLayer,
    StepDraw,
    UnitScores,
    draw_step,
    layers_of_stage,
    units_kept,
    widths_of_layers,
)
from estfx.schedules.subnetwork import Subnetwork

__all__ = [
    "PRESETS",
    "SCORES",
    "Count",
    "Draw",
    "DrawnLayer",
    "Fraction",
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
    "preset_schedule",
    "selection_policy",
    "units_kept",
    "widths_of_layers",
]
