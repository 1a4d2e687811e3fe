"""A quarter of the model types of transformers, with every operator that has a rule: as the last full sweep says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from architecture_row import all_of, complete  # noqa: E402
from representative import representative  # noqa: E402

ROWS = {row["type"]: row for row in json.loads((BENCHMARKS / "results" / "architectures.json").read_text())["rows"]}
QUARTER = representative(list(ROWS.values()))


def test_the_quarter_has_every_operator_that_a_rule_is_for_and_a_type_has():
    everywhere = {operator for row in ROWS.values() for operator in row.get("operators", ())}
    assert everywhere == {operator for name in QUARTER for operator in ROWS[name]["operators"]}
    assert len(ROWS) / 4 <= len(QUARTER) <= len(ROWS) / 3


@pytest.mark.parametrize("name", QUARTER)
def test_a_type_is_as_the_sweep_found_it(name):
    """In a process of its own, for a type may change what transformers does for all."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "architectures.py"), "--one", name],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert row.get("failed") is None, row["error"]
    assert complete(row) == complete(ROWS[name])
    assert sorted(all_of(row, "axes")) == sorted(all_of(ROWS[name], "axes"))
    assert row["without_gradient"] == ROWS[name]["without_gradient"]
