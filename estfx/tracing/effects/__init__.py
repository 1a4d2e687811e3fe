"""What a layer does beside returning a result: where it leaves values, and what it holds that is no parameter.

In goes a layer with the arguments of a call; out comes what can be reached from them, and what the call has changed.
"""

from estfx.tracing.effects.held_state import Change, HeldState, held_tensors_as_before
from estfx.tracing.effects.places import Place, held_at, prefixes, put_values
from estfx.tracing.effects.reachable import FLAGS, HOOKS, OF_EVERY_MODULE, hooks_within, reached, tensors_held
from estfx.tracing.effects.surroundings import Surroundings, frozen

__all__ = [
    "FLAGS",
    "HOOKS",
    "OF_EVERY_MODULE",
    "Change",
    "HeldState",
    "Place",
    "Surroundings",
    "frozen",
    "held_at",
    "held_tensors_as_before",
    "hooks_within",
    "prefixes",
    "put_values",
    "reached",
    "tensors_held",
]
