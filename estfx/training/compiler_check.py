"""Whether this machine can compile: torch.compile needs a C++ compiler and Python's headers, and says so late."""

from functools import cache

import torch

__all__ = ["why_not_compiled"]


@cache
def why_not_compiled(device: str = "cpu") -> str | None:
    """Compiles one line of arithmetic. Returns None if that worked, and otherwise the reason in one line."""
    try:
        torch.compile(_arithmetic, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # missing compiler, missing headers, unwritable cache: all the same to the caller
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"
    return None


def _arithmetic(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
