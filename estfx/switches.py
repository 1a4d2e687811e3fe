"""Switches from the environment, read once at import.

ESTFX_VERIFY   0: no checks between passes; 1 (default): lint after each pass; 2: verify every rule after each pass.
ESTFX_DUMP     a folder into which the graph is written after every pass.
"""

from __future__ import annotations

import os
from pathlib import Path

from estfx.errors import EstfxError

__all__ = ["DUMP", "VERIFY"]


def _verify_level() -> int:
    text = os.environ.get("ESTFX_VERIFY", "1")
    if text not in ("0", "1", "2"):
        raise EstfxError(f"ESTFX_VERIFY is {text!r}; it may be 0, 1 or 2.")
    return int(text)


VERIFY: int = _verify_level()
DUMP: Path | None = Path(os.environ["ESTFX_DUMP"]) if os.environ.get("ESTFX_DUMP") else None
