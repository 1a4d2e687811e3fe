"""The architectures with a single layer, traced once for all tests."""

from __future__ import annotations

import functools
from typing import Any

from tiny_decoders import build, depth
from torch import nn
from torch.fx import GraphModule

from estfx import trace
from estfx.graphs.fx_graphs import clone
from estfx.tracing.decoder import Decoder


def shallow(name: str, layers: int = 1, **overrides: Any) -> nn.Module:
    return build(name, **depth(name, layers), **overrides)


@functools.cache
def traced(name: str) -> Decoder:
    return trace(shallow(name))


def layer_graph(name: str) -> GraphModule:
    """A copy of the layer's graph, before any pass."""
    (graph,) = traced(name).programs.values()
    return clone(graph)
