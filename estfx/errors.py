"""The errors of estfx. The type says whose fault it is: all but `VerifyError` are for the user to mend."""

__all__ = ["EstfxError", "ScheduleError", "TraceError", "UnsupportedModelError", "VerifyError"]


class EstfxError(Exception):
    """Anything that estfx refuses to do; the message says what was asked, what exists and what to do."""

    exit_status = 2  # of a command that ends with it
    page = ""  # of the documentation, which helps


class ScheduleError(EstfxError, ValueError):
    """A schedule, a stage or a step that cannot be."""

    page = "how-to/schedule.md"


class TraceError(EstfxError):
    """A layer could not be turned into a graph."""

    page = "how-to/own-architecture.md"


class UnsupportedModelError(EstfxError):
    """A model without layers, or one in which nothing can be narrowed."""

    page = "how-to/own-architecture.md"


class VerifyError(EstfxError):
    """A graph broke one of estfx's own rules: a fault of estfx, never of the user."""

    exit_status = 1
    page = "explanation/oracles.md"
