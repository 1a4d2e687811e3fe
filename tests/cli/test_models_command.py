"""`estfx models`: what was found in each type."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from typer.testing import CliRunner

from estfx.cli.main import app

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from architecture_table import types_found  # noqa: E402


def test_it_lists_the_types_that_have_the_word() -> None:
    result = CliRunner().invoke(app, ["models", "Qwen3"])
    assert result.exit_code == 0, result.output
    assert "qwen3_moe" in result.stdout
    assert "llama" not in result.stdout
    found = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert found["types"]["llama"]["found"] == ["layers", "heads", "neurons"]
    assert 6e9 < found["types"]["llama"]["parameters"] < 8e9
    assert f"of {len(found['types'])} types" in result.stdout


def test_an_unknown_word_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["models", "lamma"])
    assert result.exit_code == 2
    assert "no type has 'lamma' in its name; did you mean 'llama'" in result.stderr


def test_it_says_what_the_sweep_found() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "architectures.json").read_text())
    shown = json.loads((ROOT / "estfx" / "cli" / "model_types.json").read_text())
    assert shown["transformers"] == record["environment"]["packages"]["transformers"]
    stored = {name: {**each} for name, each in shown["types"].items()}
    for each in stored.values():
        del each["parameters"]
    assert stored == types_found(record)
