"""What a schedule costs on a model: FLOPs, parameters at work, memory, and the schedule for a saving.

In go a model and a schedule; out comes a `Plan`, from shapes alone.
"""

from estfx.costs.active_counts import Activity, activity_of
from estfx.costs.hardware import PEAKS, hours, peak_of
from estfx.costs.node_flops import LENGTH, node_flops
from estfx.costs.schedule_plan import Plan, plan, plans
from estfx.costs.stage_plan import StagePlan
from estfx.costs.target_saving import little_left, schedule_for_saving, schedule_saving

__all__ = [
    "LENGTH",
    "PEAKS",
    "Activity",
    "Plan",
    "StagePlan",
    "activity_of",
    "hours",
    "little_left",
    "node_flops",
    "peak_of",
    "plan",
    "plans",
    "schedule_for_saving",
    "schedule_saving",
]
