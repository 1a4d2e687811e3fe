"""Writes a benchmark's figures to `benchmarks/results/`, with the command, the versions and the kind of machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from estfx.training import environment

__all__ = ["write"]

FOLDER = Path(__file__).parent / "results"
BEGUN = time.monotonic()


def machine() -> str:
    return torch.cuda.get_device_name().replace(" ", "-").lower() if torch.cuda.is_available() else "cpu"


def _script() -> str:
    """The path of the script that runs, from the root of the repository."""
    path = Path(sys.argv[0]).resolve()
    root = FOLDER.parent.parent
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def write(name: str, options: dict[str, Any], rows: Mapping[str, Mapping[str, float | str]]) -> None:
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{machine()}-{date.today()}.json"
    record = {
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "options": options,
        "environment": environment(),
        "took_seconds": round(time.monotonic() - BEGUN),
        "figures": rows,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path.relative_to(FOLDER.parent.parent)}")
