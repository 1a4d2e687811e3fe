"""What a value is made of, as a colour tells it."""

__all__ = ["COLORS", "sort_of"]

COLORS = {"": "#ffffff", "heads": "#cfe2ff", "neurons": "#ffe3c2", "channels": "#d6f0d0", "several": "#e8d9f5"}


def sort_of(axes: str) -> str:
    """Of a value's axes as printed, `(., ., neurons_2)`: `heads`, `neurons`, `channels`, `several`, or nothing."""
    found = [sort for sort in ("heads", "neurons", "channels") if sort in axes]
    return "several" if len(found) > 1 else "".join(found)
