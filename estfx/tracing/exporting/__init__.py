"""From one call of a layer to a flat graph of ATen operators, by torch.export.

In goes a `LayerCall`; out comes a `TracedLayer`, or a `TraceError` with the reason why there is no graph.
"""

from estfx.tracing.exporting.layer_graph import TracedLayer, trace_call
from estfx.tracing.exporting.split_parameters import split_parameters
from estfx.tracing.exporting.transformers_code import loops_over_experts

__all__ = [
    "TracedLayer",
    "loops_over_experts",
    "split_parameters",
    "trace_call",
]
