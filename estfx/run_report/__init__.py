"""A report about runs of `estfx train`: one page that needs nothing else, the same as figures, and as JSON."""

from estfx.run_report.contents import Contents, contents_of
from estfx.run_report.runs import Run, read_runs
from estfx.run_report.write import Format, write_report

__all__ = ["Contents", "Format", "Run", "contents_of", "read_runs", "write_report"]
