"""The notebook runs, and shows what it shows in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def kinds(cell: Any) -> list[str]:
    """What a cell shows: the formats of its results and pictures, and whether it prints."""
    found = [sorted(output.get("data", {})) or [output.get("name", "error")] for output in cell.get("outputs", [])]
    return [" ".join(each) for each in found]


@pytest.mark.sweep(day=3, days=16)
def test_the_notebook_runs_and_shows_what_it_holds() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(run, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [(cell.source, kinds(cell)) for cell in run.cells if cell.cell_type == "code"]
    assert shown == [(cell.source, kinds(cell)) for cell in stored.cells if cell.cell_type == "code"]
    assert not any("stderr" in each or "error" in each for _, each in shown)
