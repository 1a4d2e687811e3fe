"""One page about training runs: curves, stages, FLOPs, speed.

In go run folders; out comes one self-contained HTML page, or pictures.
Its doors are loaded when they are first asked for, so that folders are looked at before torch is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from estfx.lazy_names import lazy_names

if TYPE_CHECKING:
    from estfx.run_report.contents import Contents as Contents
    from estfx.run_report.contents import contents_of as contents_of
    from estfx.run_report.runs import Run as Run
    from estfx.run_report.runs import read_runs as read_runs
    from estfx.run_report.write import Format as Format
    from estfx.run_report.write import write_report as write_report

_MODULES = {
    "Contents": "estfx.run_report.contents",
    "Format": "estfx.run_report.write",
    "Run": "estfx.run_report.runs",
    "contents_of": "estfx.run_report.contents",
    "read_runs": "estfx.run_report.runs",
    "write_report": "estfx.run_report.write",
}
__all__ = [
    "Contents",
    "Format",
    "Run",
    "contents_of",
    "read_runs",
    "write_report",
]

if not TYPE_CHECKING:  # a type checker would take any name for a door
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
