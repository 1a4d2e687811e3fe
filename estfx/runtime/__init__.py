"""What happens at every step: the draw, the layers that run it or are skipped, and what follows the step.

In go programs, a schedule and a model; out comes the model, whose layers run the subnetwork of the step in force.
"""

from estfx.runtime.compiled_surroundings import changed_outside, mount_outside, unmount_outside
from estfx.runtime.copied_layers import CopiedLayers
from estfx.runtime.follower import StepState
from estfx.runtime.fused_loss import check_fusible, deferred_logits, fused
from estfx.runtime.idle_units import IdleUnits
from estfx.runtime.joining_units import zero_joining
from estfx.runtime.layer_mount import Call, Mount, is_mounted, mount, unmount
from estfx.runtime.model_state import made_with, numbers_left_out, part_at_work
from estfx.runtime.mounted_layers import MountedLayers
from estfx.runtime.optimizer_hooks import parameters_held, watch
from estfx.runtime.rank_agreement import RankAgreement, check_gradients
from estfx.runtime.run_fingerprint import differences, drawn_layers
from estfx.runtime.runtime import Runtime
from estfx.runtime.selection import Selection
from estfx.runtime.unit_weights import Sums, unit_positions, unit_weights
from estfx.runtime.warmup import warm_up

__all__ = [
    "Call",
    "CopiedLayers",
    "IdleUnits",
    "Mount",
    "MountedLayers",
    "RankAgreement",
    "Runtime",
    "Selection",
    "StepState",
    "Sums",
    "changed_outside",
    "check_fusible",
    "check_gradients",
    "deferred_logits",
    "differences",
    "drawn_layers",
    "fused",
    "is_mounted",
    "made_with",
    "mount",
    "mount_outside",
    "numbers_left_out",
    "parameters_held",
    "part_at_work",
    "unit_positions",
    "unit_weights",
    "unmount",
    "unmount_outside",
    "warm_up",
    "watch",
    "zero_joining",
]
