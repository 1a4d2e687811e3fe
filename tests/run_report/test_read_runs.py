import json
import shutil

import numpy as np
import pytest
import yaml

from estfx.run_report import contents_of, read_runs
from estfx.settings import SettingsError


def contents(*folders):
    return contents_of(read_runs(folders))


def change_config(folder, section, **values):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_is_read_as_it_was_written(evolving, lines_of):
    (run,) = read_runs([evolving])
    steps = [line for line in lines_of(evolving) if line["kind"] == "step"]
    assert run.steps.loss.tolist() == [line["loss"] for line in steps]
    assert run.steps.flops.tolist() == [line["flops"] for line in steps]
    assert run.steps.compiled is not None
    assert [step for step, _ in run.held_out] == [0, 4, 8]
    assert run.finished
    assert not run.dense
    assert run.notes == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no such folder"),
        ("empty", "holds no run: there is neither metrics.jsonl nor config.yaml in it"),
        ("file", "file is a file; name the folder of a run"),
        ("unstarted", "holds a run without metrics: no step of it stands in metrics.jsonl yet"),
        ("nothing-but-held-out", "holds a run without metrics"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "unstarted").mkdir()
    (tmp_path / "unstarted" / "config.yaml").write_text("{}")
    (tmp_path / "nothing-but-held-out").mkdir()
    (tmp_path / "nothing-but-held-out" / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 0, "held_out_loss": 5.0}\n'
    )
    with pytest.raises(SettingsError, match=message):
        read_runs([tmp_path / name])


def test_a_run_named_twice_is_refused(evolving):
    with pytest.raises(SettingsError, match="is named twice"):
        read_runs([evolving, evolving / ".." / "evolving"])


def test_runs_of_one_name_are_told_apart_by_their_folders(evolving, tmp_path):
    other = shutil.copytree(evolving, tmp_path / "other" / "evolving")
    assert [run.label for run in read_runs([evolving, other])] == [str(evolving), str(other)]


def test_half_written_lines_are_left_out_and_told(evolving):
    metrics = evolving / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[3] = lines[3][:20]
    lines[4] = '{"kind": "step", "step": 3, "loss": "high"}'
    metrics.write_text("\n".join([*lines, '{"kind": "st']))
    found = contents(evolving)
    assert len(found.runs[0].run.steps) == 6
    assert found.notes == (
        f"evolving has damaged or half-written lines in metrics.jsonl, which are left out: 4, 5, {len(lines) + 1}.",
    )


def test_a_run_without_a_summary_is_shown_as_far_as_it_got(evolving, lines_of):
    (evolving / "summary.json").unlink()
    metrics = evolving / "metrics.jsonl"
    metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:6]))
    found = contents(evolving)
    facts = found.runs[0].facts
    assert not facts["finished"]
    assert (facts["steps"], facts["steps_planned"]) == (4, 8)
    assert facts["held_out_loss"]["after"] == lines_of(evolving)[-1]["held_out_loss"]
    assert facts["flops_saved"] is None
    assert [(s["stage"], s["start"], s["stop"], s["heads"]) for s in facts["stages"]] == [
        (1, 0, 1, 0.5),
        (2, 1, 4, 0.5),
    ]
    assert "still going or was stopped. Shown are the 4 of 8 steps so far" in found.notes[0]


@pytest.mark.parametrize("text", [None, '{"model": ', "[]", '{"seed": 0}', "\x00"])
def test_without_made_with_how_often_units_were_trained_is_left_out(evolving, text):
    file = evolving / "made_with.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    found = contents(evolving)
    assert found.runs[0].trained is None
    (note,) = found.notes
    assert "how often its units were trained is left out" in note


def test_every_other_file_may_be_missing_or_damaged(evolving):
    for name in ("config.yaml", "environment.json"):
        (evolving / name).write_text("[")
    found = contents(evolving)
    assert found.notes == (
        "evolving has a damaged config.yaml, which is left out.",
        "evolving has a damaged environment.json, which is left out.",
    )
    (evolving / "made_with.json").unlink()
    (evolving / "summary.json").unlink()
    assert len(contents(evolving).runs[0].facts["stages"]) == 3


def test_a_lost_loss_is_no_number_in_json(evolving):
    metrics = evolving / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[-2]["loss"] = float("nan")
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = contents(evolving).to_json()
    assert data["runs"][0]["curves"]["training"]["loss"][-1] is None
    assert data["runs"][0]["training_loss"] is None
    json.dumps(data, allow_nan=False)


def test_what_a_run_saves_against_the_dense_one(runs, lines_of):
    found = contents(runs / "evolving", runs / "whole")
    mine, theirs = (
        [line for line in lines_of(runs / name) if line["kind"] == "step"] for name in ("evolving", "whole")
    )
    against = found.runs[0].facts["against_dense"]
    assert against["run"] == "whole"
    for key in ("flops", "seconds"):
        saved = 1 - sum(line[key] for line in mine) / sum(line[key] for line in theirs)
        assert against[f"{key}_saved"] == pytest.approx(saved)
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("evolving", "whole")]
    assert against["flops_saved"] == pytest.approx(summaries[0]["flops_saved"]["model"])
    after = [summary["held_out_loss"]["after"] for summary in summaries]
    assert against["held_out_loss"] == pytest.approx(after[0] - after[1])
    assert found.runs[1].facts["against_dense"] is None
    assert found.warnings == ()
    assert list(found.differing_settings) == ["schedule.stages"]
    assert found.differing_settings["schedule.stages"][1] == "start 0, heads 1.0, neurons 1.0, layers 1.0"


def test_runs_are_compared_over_the_steps_that_both_have_done(evolving, whole):
    metrics = whole / "metrics.jsonl"
    metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:7]))
    (run, dense) = read_runs([evolving, whole])
    against = contents_of([run, dense]).runs[0].facts["against_dense"]
    assert (against["steps"], against["held_out_loss_after"]) == (5, 4)
    assert against["flops_saved"] == pytest.approx(1 - run.steps.flops[:5].sum() / dense.steps.flops.sum())


def test_of_a_run_that_is_not_finished_the_dense_one_counts_as_far(evolving, whole):
    metrics = evolving / "metrics.jsonl"
    metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:7]))
    (run, dense) = read_runs([evolving, whole])
    against = contents_of([run, dense]).runs[0].facts["against_dense"]
    assert against["steps"] == 5
    assert against["flops_saved"] == pytest.approx(1 - run.steps.flops.sum() / dense.steps.flops[:5].sum())


def test_a_step_that_was_done_again_counts_once_and_as_it_was_done_last(evolving, lines_of):
    before = read_runs([evolving])[0].steps
    step = next(line for line in lines_of(evolving) if line["kind"] == "step" and line["step"] == 2)
    with (evolving / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({**step, "loss": 9.5}) + "\n")
    steps = read_runs([evolving])[0].steps
    assert steps.step.tolist() == before.step.tolist()
    assert steps.loss[2] == 9.5


def test_different_models_are_not_compared(evolving, whole):
    change_config(whole, "model", name="llama")
    found = contents(evolving, whole)
    assert "evolving and whole train different models (model.name: gpt2 and llama)" in found.warnings[0]
    assert found.runs[0].facts["against_dense"] is None
    assert found.runs[0].facts["flops_saved"] is not None


def test_other_data_settings_and_machines_are_told(evolving, whole):
    change_config(whole, "data", seq_len=32)
    change_config(whole, "train", learning_rate=0.1)
    environment = json.loads((whole / "environment.json").read_text())
    (whole / "environment.json").write_text(json.dumps(environment | {"cpu_count": 1000}))
    found = contents(evolving, whole)
    for message in (
        "read different data (data.seq_len: 16 and 32). Their losses cannot be compared",
        "trained with different settings (train.learning_rate: 0.0006 and 0.1)",
        " and 1000). Their seconds cannot be compared",
    ):
        assert any(message in warning for warning in found.warnings)
    against = found.runs[0].facts["against_dense"]
    assert against["held_out_loss"] is None
    assert against["seconds_saved"] is None
    assert against["flops_saved"] > 0


def test_long_curves_are_drawn_as_means(evolving):
    metrics = evolving / "metrics.jsonl"
    line = next(line for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "step")
    metrics.write_text("".join(json.dumps(line | {"step": n, "loss": n, "seconds": n + 1}) + "\n" for n in range(1001)))
    curves = contents(evolving).runs[0].curves
    assert curves.steps_per_point == 3
    assert len(curves.loss) == len(curves.at["tokens"]) == 334
    assert curves.loss[:2].tolist() == [1, 4]
    assert curves.loss[-1] == 999.5
    assert curves.slowest[0] == 3
    assert np.all(np.diff(curves.at["seconds"]) > 0)
