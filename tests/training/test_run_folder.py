import json
import os

import pytest

from estfx.settings import SettingsError
from estfx.training.run_folder import RunFolder


def test_a_run_is_written_down(tmp_path):
    with RunFolder(tmp_path / "a" / "run") as run:
        run.begin()
        run.write_metrics({"kind": "step", "loss": 1.5})
        run.write_metrics({"kind": "eval"})
        assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2  # on disk while the run goes on
        run.write_environment()
        run.write_summary({"steps": 2})
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert json.loads((run.path / "summary.json").read_text()) == {"steps": 2}


def test_going_back_leaves_out_what_will_be_done_again(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.begin()
        for step in range(5):
            run.write_metrics({"kind": "step", "step": step})
            run.write_metrics({"kind": "eval", "step": step + 1})  # after so many steps
        run.go_back_to(3)
        run.write_metrics({"kind": "step", "step": 3})
        lines = [(line["kind"], line["step"]) for line in run.metrics()]
    done = [("step", 0), ("eval", 1), ("step", 1), ("eval", 2), ("step", 2), ("eval", 3)]
    assert lines == [*done, ("step", 3)]


def test_a_second_run_may_not_mix_with_the_first(tmp_path):
    with RunFolder(tmp_path) as run:
        run.begin()
        run.write_metrics({})
    with pytest.raises(SettingsError, match="holds a run; choose another --out, or go on"):
        RunFolder(tmp_path)


def test_a_run_that_did_no_step_leaves_nothing(tmp_path):
    with RunFolder(tmp_path / "runs" / "first") as run:
        assert not (tmp_path / "runs").exists()
        run.begin()
        run.write_environment()
        assert sorted(path.name for path in run.path.iterdir()) == ["environment.json", "metrics.jsonl"]
    assert list(tmp_path.iterdir()) == []


def test_what_lay_in_the_folder_before_stays(tmp_path):
    (tmp_path / "environment.json").write_text("of somebody")
    (tmp_path / "notes").write_text("mine")
    with RunFolder(tmp_path) as run:
        run.begin()
        run.write_summary({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment.json", "notes"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file is a file; choose another --out"):
        RunFolder(tmp_path / "file")
    with pytest.raises(SettingsError, match=r"cannot write to the folder .* is a file; choose another --out"):
        RunFolder(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(SettingsError, match="cannot write to the folder"):
        RunFolder(tmp_path / "closed" / "run")
