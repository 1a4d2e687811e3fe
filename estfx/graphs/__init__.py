"""Reading, printing, checking and tagging torch.fx graphs.

In goes a graph of ATen operators; out comes what it says, as text or as frozen plain data. Nothing here knows of
models, layers or schedules.
"""

from estfx.graphs import tags
from estfx.graphs.aliasing import CASTS, is_view, memory_of, writes
from estfx.graphs.autocast import as_in, autocast_state, autocasts
from estfx.graphs.autograd_functions import (
    callable_of,
    is_own_function,
    is_pointwise_function,
    kept_functions,
    replace_calls,
)
from estfx.graphs.axis_colors import COLORS, sort_of
from estfx.graphs.branches import BRANCH, branches_of
from estfx.graphs.dimensions import Axis, Dim, Extent, Product, Sum, coarse, extent_of
from estfx.graphs.double_precision import InDouble, promoted, without_dropout
from estfx.graphs.fx_graphs import (
    arguments,
    clone,
    describe,
    has_tensor,
    is_model_code,
    nodes_within,
    propagate_shapes,
    sizes,
    source_line,
    tensor_of,
)
from estfx.graphs.gather import spread, take
from estfx.graphs.opaque_modules import (
    TENSOR,
    OpaqueModule,
    OpaqueOutput,
    opaque_flops,
    opaque_module_of,
    opaque_modules,
    put_opaque_modules,
)
from estfx.graphs.pipeline import Analysis, Pass, Rewrite, run_passes
from estfx.graphs.printing import (
    argument_text,
    axes_text,
    graph_diff,
    graph_text,
    operator_name,
    size_names,
    size_text,
    type_text,
)
from estfx.graphs.provenance import passes_of
from estfx.graphs.regions import inline_regions
from estfx.graphs.tags import fraction_of

__all__ = [
    "BRANCH",
    "CASTS",
    "COLORS",
    "TENSOR",
    "Analysis",
    "Axis",
    "Dim",
    "Extent",
    "InDouble",
    "OpaqueModule",
    "OpaqueOutput",
    "Pass",
    "Product",
    "Rewrite",
    "Sum",
    "argument_text",
    "arguments",
    "as_in",
    "autocast_state",
    "autocasts",
    "axes_text",
    "branches_of",
    "callable_of",
    "clone",
    "coarse",
    "describe",
    "extent_of",
    "fraction_of",
    "graph_diff",
    "graph_text",
    "has_tensor",
    "inline_regions",
    "is_model_code",
    "is_own_function",
    "is_pointwise_function",
    "is_view",
    "kept_functions",
    "memory_of",
    "nodes_within",
    "opaque_flops",
    "opaque_module_of",
    "opaque_modules",
    "operator_name",
    "passes_of",
    "promoted",
    "propagate_shapes",
    "put_opaque_modules",
    "replace_calls",
    "run_passes",
    "size_names",
    "size_text",
    "sizes",
    "sort_of",
    "source_line",
    "spread",
    "tags",
    "take",
    "tensor_of",
    "type_text",
    "without_dropout",
    "writes",
]
