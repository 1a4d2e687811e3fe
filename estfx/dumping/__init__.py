"""The graphs of a stage, written down: as text, JSON, DOT, SVG, HTML or Python.

In go a model, a schedule and a stage; out comes text, from which the graphs can be loaded again.
"""

from estfx.dumping.dump_stage import dump
from estfx.dumping.loading import graph_module, load_graphs
from estfx.dumping.records import GraphRecord, graph_record

__all__ = [
    "GraphRecord",
    "dump",
    "graph_module",
    "graph_record",
    "load_graphs",
]
