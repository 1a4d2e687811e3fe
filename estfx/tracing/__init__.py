"""From a model to its layers, and from each kind of layer to one graph of ATen operators.

In goes a decoder with example inputs; out comes a `Decoder`: its layers in the order of their calls, and their graphs.
"""

from estfx.tracing.call_signature import Signature, call_key, flatten, is_plain, signature_of
from estfx.tracing.capture import (
    call_arguments,
    default_inputs,
    in_mode,
    run_quietly,
    sized_inputs,
    values_on_meta,
    without_cache,
)
from estfx.tracing.decoder import ATTRIBUTE, Decoder, at_rest, trace
from estfx.tracing.effects import OF_EVERY_MODULE, HeldState, Place, Surroundings, held_at, prefixes
from estfx.tracing.exporting import TracedLayer, loops_over_experts, trace_call
from estfx.tracing.kind_key import canonical
from estfx.tracing.kv_caches import asks_for_cache, without_empty_caches
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.layer_calls import ASKING, outcome
from estfx.tracing.layer_names import LayerPatterns
from estfx.tracing.layer_ranges import listed
from estfx.tracing.layer_structure import Changes, Snapshot, changed_places, changes
from estfx.tracing.meta_run import NumbersHaveValues
from estfx.tracing.opened_types import open_dataclasses
from estfx.tracing.unsharded_layers import left_sharded, unsharded

__all__ = [
    "ASKING",
    "ATTRIBUTE",
    "OF_EVERY_MODULE",
    "Changes",
    "Decoder",
    "HeldState",
    "LayerCall",
    "LayerPatterns",
    "NumbersHaveValues",
    "Place",
    "Signature",
    "Snapshot",
    "Surroundings",
    "TracedLayer",
    "asks_for_cache",
    "at_rest",
    "call_arguments",
    "call_key",
    "canonical",
    "changed_places",
    "changes",
    "default_inputs",
    "flatten",
    "held_at",
    "in_mode",
    "is_plain",
    "left_sharded",
    "listed",
    "loops_over_experts",
    "open_dataclasses",
    "outcome",
    "prefixes",
    "run_quietly",
    "signature_of",
    "sized_inputs",
    "trace",
    "trace_call",
    "unsharded",
    "values_on_meta",
    "without_cache",
    "without_empty_caches",
]
