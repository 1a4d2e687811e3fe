"""One page about training runs: curves, stages, FLOPs, speed.

In go run folders; out comes one self-contained HTML page, or pictures.
"""

from estfx.run_report.contents import Contents, contents_of
from estfx.run_report.runs import Run, read_runs
from estfx.run_report.write import Format, write_report

__all__ = ["Contents", "Format", "Run", "contents_of", "read_runs", "write_report"]
