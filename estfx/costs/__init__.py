"""What a schedule costs on a model: FLOPs, parameters at work, memory, and the schedule for a saving.

In go a model and a schedule; out comes a `Plan`, from shapes alone. What needs torch is loaded
when it is first asked for.
"""

from typing import TYPE_CHECKING

from estfx.costs.hardware import PEAKS, hours, peak_of
from estfx.lazy_names import lazy_names

if TYPE_CHECKING:
    from estfx.costs.active_counts import Activity as Activity
    from estfx.costs.active_counts import activity_of as activity_of
    from estfx.costs.operator_flops import LENGTH as LENGTH
    from estfx.costs.operator_flops import node_flops as node_flops
    from estfx.costs.schedule_plan import Plan as Plan
    from estfx.costs.schedule_plan import plan as plan
    from estfx.costs.schedule_plan import plans as plans
    from estfx.costs.stage_plan import StagePlan as StagePlan
    from estfx.costs.target_saving import little_left as little_left
    from estfx.costs.target_saving import schedule_for_saving as schedule_for_saving
    from estfx.costs.target_saving import schedule_saving as schedule_saving

_MODULES = {
    "Activity": "estfx.costs.active_counts",
    "LENGTH": "estfx.costs.operator_flops",
    "Plan": "estfx.costs.schedule_plan",
    "StagePlan": "estfx.costs.stage_plan",
    "activity_of": "estfx.costs.active_counts",
    "little_left": "estfx.costs.target_saving",
    "node_flops": "estfx.costs.operator_flops",
    "plan": "estfx.costs.schedule_plan",
    "plans": "estfx.costs.schedule_plan",
    "schedule_for_saving": "estfx.costs.target_saving",
    "schedule_saving": "estfx.costs.target_saving",
}
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

if not TYPE_CHECKING:  # a type checker would take any name for a door
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
