"""A quarter of the model types of transformers, with every operator that has a rule: as the last full sweep says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from estfx.training.run_folder import environment

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

from architecture_table import differences  # noqa: E402
from representative import representative  # noqa: E402

SWEEP = json.loads((BENCHMARKS / "results" / "architectures.json").read_text())
ROWS = {row["type"]: row for row in SWEEP["rows"]}
QUARTER = representative(list(ROWS.values()))
GROUPS = 28  # each one process, which imports what takes long once; one a day


def test_the_quarter_has_every_operator_that_a_rule_is_for_and_a_type_has():
    everywhere = {operator for row in ROWS.values() for operator in row.get("operators", ())}
    assert everywhere == {operator for name in QUARTER for operator in ROWS[name]["operators"]}
    assert len(ROWS) / 4 <= len(QUARTER) <= len(ROWS) / 3


@pytest.mark.sweep("group", days=GROUPS)
@pytest.mark.parametrize("group", range(GROUPS))
def test_types_are_as_the_sweep_found_them(group, tmp_path):
    here, there = environment()["packages"], SWEEP["environment"]["packages"]
    for package in ("torch", "transformers"):
        if here[package] != there[package]:
            pytest.skip(f"the sweep was made with {package} {there[package]}, not with {here[package]}")
    types = QUARTER[group::GROUPS]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "architectures.py", *types, "--jobs", "1", "--into", tmp_path / "rows.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["type"] for row in found["rows"]] == types
    wanted = {**SWEEP, "rows": [ROWS[name] for name in types], "environment": found["environment"]}
    assert "\n".join(map(": ".join, differences(found, wanted))) == ""
