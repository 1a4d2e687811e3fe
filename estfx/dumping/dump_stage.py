"""The rewritten graphs of a stage, written down."""

from __future__ import annotations

from torch import nn

from estfx.dumping.formats import FORMATS
from estfx.dumping.stage_graphs import stage_graphs
from estfx.errors import EstfxError
from estfx.schedules import Schedule
from estfx.settings import nearest
from estfx.tracing import LayerPatterns

__all__ = ["dump"]


def dump(
    model: nn.Module,
    schedule: Schedule,
    stage_index: int,
    example_inputs: object = None,
    *,
    layers: LayerPatterns | None = None,
    format: str = "text",
    after: str | None = None,
) -> str:
    """The narrowed graph of every kind of layer at `schedule.stages[stage_index]`, before compilation.

    `format` is one of

    - `text`: one line a node, with its type, its axes, the line of the model's own code, and the passes that made it,
    - `diff`: the unified difference of that text to the whole layer's,
    - `code`: Python that runs, a function for each kind,
    - `json`: all of it, to be read by programs and made a GraphModule again (`estfx.load_graphs`),
    - `dot`, `svg`: for Graphviz (Netron opens it too), and drawn by it,
    - `html`: a page to look around in, which needs nothing else,
    - `model-explorer`: a graph collection for Google's Model Explorer.

    `layers` names the layers, as for `trace`. With `after`, the name of a pass, the graphs are as that pass left them.

    Raises ScheduleError for a stage that does not exist, EstfxError for a format or a pass that does not, or a program
    that a format needs and that is not installed.
    """
    if format not in FORMATS:
        raise EstfxError(f"there is no format {format!r}; {nearest(format, FORMATS)}")
    graphs = stage_graphs(
        model, schedule, stage_index, example_inputs, layers=layers, after=after, with_outer=format in ("html", "json")
    )
    return FORMATS[format](graphs)
