"""The formats of a dump by their names."""

from collections.abc import Callable

from estfx.dumping.code import code
from estfx.dumping.dot import dot, svg
from estfx.dumping.model_explorer import model_explorer
from estfx.dumping.page import page
from estfx.dumping.records import json_text
from estfx.dumping.stage_graphs import StageGraphs
from estfx.dumping.text import diff, text

__all__ = ["FORMATS"]

FORMATS: dict[str, Callable[[StageGraphs], str]] = {
    "text": text,
    "diff": diff,
    "code": code,
    "json": json_text,
    "dot": dot,
    "svg": svg,
    "html": page,
    "model-explorer": model_explorer,
}
