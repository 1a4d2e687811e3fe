"""What can be refused at once is refused before torch is loaded, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from estfx.errors import EstfxError
from estfx.settings import SettingsError
from estfx.training.model_argument import check_model
from estfx.training.transformers_source import registered_types

WRONG = [
    ["inspect", "gtp2"],
    ["inspect", "folder"],
    ["inspect", "missing.py:made"],
    ["inspect", "gpt2", "--config", "n_layer"],
    ["plan", "gtp2"],
    ["plan", "gpt2", "--target-saving", "25"],
    ["plan", "gpt2", "--hardware", "h1000"],
    ["plan", "gpt2", "--plot", "x.pdf"],
    ["plan", "gpt2", "--out", "nowhere/run.yaml"],
    ["plan", "gpt2", "--preset", "ets"],
    ["plan", "gpt2", "nowhere.yaml"],
    ["dump", "gpt2", "--preset", "est", "--stage", "9"],
    ["dump", "gtp2"],
    ["bench", "gtp2"],
    ["train", "--model", "gtp2"],
    ["train", "nowhere.yaml"],
    ["train", "--set", "train.steps=5"],
    ["train", "--set", "train.total_steps=2"],
    ["train", "--set", "schedule.preset=ets"],
    ["train", "--set", "data.source=nowhere.txt"],
    ["train", "--out", "file"],
    ["train", "--resume", "--out", "nowhere"],
]

SCRIPT = """
import json, sys
from typer.testing import CliRunner
from estfx.cli.main import app

for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    print(json.dumps([result.exit_code, "torch" in sys.modules, result.stderr]))
"""


def test_torch_is_not_loaded_to_refuse_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(WRONG)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for arguments, line in zip(WRONG, done.stdout.splitlines(), strict=True):
        status, loaded, message = json.loads(line)
        assert (status, loaded) == (2, False), (arguments, message)
        error, page = message.strip().rsplit("\n", 1)
        assert error.startswith("error: "), message
        assert page.startswith("see docs/"), message
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_the_types_are_read_from_the_source_of_transformers() -> None:
    assert registered_types() == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_without_the_source_a_type_is_left_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="did you mean 'gpt2'"):
        check_model("gtp2")
    monkeypatch.setattr("estfx.training.transformers_source._tree", lambda file: None)
    check_model("gtp2", {"n_layers": 2}, length=("--seq-len", 10**9))
    monkeypatch.undo()


def test_a_factory_is_looked_for_before_its_file_is_run(tmp_path: Path) -> None:
    file = tmp_path / "factory.py"
    file.write_text("import torch\nfrom os import path as own\n\ndef made(): ...\n\nother = made\n")
    for name in ("made", "other", "own"):
        check_model(f"{file}:{name}")
    with pytest.raises(SettingsError, match="has no function 'mad'; did you mean 'made'"):
        check_model(f"{file}:mad")
    file.write_text("import no_such_package\ndef made(): ...\n")
    with pytest.raises(SettingsError, match="No module named 'no_such_package'"):
        check_model(f"{file}:made")
    file.write_text("import sys\nsys.path.insert(0, 'elsewhere')\nimport no_such_package\n")
    check_model(f"{file}:made")  # which may be there, once the file runs


def test_every_page_that_an_error_names_is_there() -> None:
    docs = Path(__file__).parents[2] / "docs"
    kinds = [EstfxError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert not kind.page or (docs / kind.page).is_file(), kind
    assert all((docs / page).is_file() for page in ("reference/settings.md", "reference/command-line.md"))
