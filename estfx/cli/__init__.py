"""The command line: what stands behind each command, its options and tables.

In go words on a command line; out come text, files and an exit status.
"""

from estfx.cli.main import app, main

__all__ = [
    "app",
    "main",
]
