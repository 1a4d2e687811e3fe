"""A file for each graph after each pass, in one folder: `00012-GPT2Block-find-axes.txt` (ESTFX_DUMP)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from torch.fx import GraphModule

from estfx.errors import EstfxError

__all__ = ["write_graph"]

_next: dict[Path, int] = {}  # the number of the next file, by folder


def write_graph(folder: Path, gm: GraphModule, after: str) -> Path:
    """Writes the graph as typed text, into a file whose number is the next in order.

    The first of a process is numbered after what is in the folder already. Nothing is overwritten, not by another
    process either.

    Raises EstfxError if the folder cannot be written to.
    """
    from estfx.graphs.printing import graph_text

    text = graph_text(gm)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in _next:
            _next[folder] = _first_free(folder)
        while True:
            path = folder / f"{_next[folder]:05d}-{gm._get_name()}-{after}.txt"
            _next[folder] += 1
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:  # if none was quicker
                file.write(text)
                return path
    except OSError as error:
        raise EstfxError(
            f"ESTFX_DUMP is {str(folder)!r}, but the graphs cannot be written there: {error.strerror or error}. Name a "
            "folder that can be made or written to, or unset it."
        ) from error


def _first_free(folder: Path) -> int:
    numbers = (re.match(r"(\d+)-", file.name) for file in folder.iterdir())
    return max((int(number[1]) + 1 for number in numbers if number), default=0)
