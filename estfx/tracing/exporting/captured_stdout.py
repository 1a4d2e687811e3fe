"""Keeps back what is printed and logged until it is known whether the work succeeds."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["held_output"]

SPEAKER = "torch"


@contextmanager
def held_output() -> Iterator[None]:
    """What is printed within it, and what torch warns of in its logs, comes out at the end, or never if it fails.

    The exception then says what went wrong; torch prints a whole graph beside it. Loggers write to the stream that
    they were given at their birth, so that redirecting streams does not reach them. What is logged below warnings was
    asked for, with TORCH_LOGS, and comes out at once.
    """
    held: list[tuple[logging.Logger, logging.LogRecord]] = []
    filters = [(logger, _holding(logger, held)) for logger in _loggers()]
    out, err = io.StringIO(), io.StringIO()
    try:
        for logger, hold in filters:
            logger.addFilter(hold)
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for logger, hold in filters:
            logger.removeFilter(hold)
    sys.stdout.write(out.getvalue())
    sys.stderr.write(err.getvalue())
    for logger, record in held:
        logger.handle(record)


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict
    return [
        logger
        for name, logger in list(known.items())
        if isinstance(logger, logging.Logger) and name.split(".")[0] == SPEAKER
    ]


def _holding(logger: logging.Logger, held: list[tuple[logging.Logger, logging.LogRecord]]) -> logging.Filter:
    class Hold(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.levelno < logging.WARNING:
                return True
            held.append((logger, record))
            return False

    return Hold()
