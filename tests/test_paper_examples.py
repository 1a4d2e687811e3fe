"""The paper's configurations: at full size without weights, and cut down on the CPU."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

FOLDER = Path(__file__).parent.parent / "examples" / "paper"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
SAVED = {  # of the layers' FLOPs, and of the whole model's
    "gpt2-base-est.yaml": "26.67% of the layers' FLOPs saved, 19.44% of the whole model's",
    "gpt2-base-compound.yaml": "26.72% of the layers' FLOPs saved, 19.48% of the whole model's",
    "gpt2-base-dense.yaml": "0.00% of the layers' FLOPs saved, 0.00% of the whole model's",
    "gpt2-base-dense-short.yaml": "0.00% of the layers' FLOPs saved, 0.00% of the whole model's",
    "tinyllama-est.yaml": "25.00% of the layers' FLOPs saved, 23.66% of the whole model's",
    "tinyllama-compound.yaml": "26.34% of the layers' FLOPs saved, 24.92% of the whole model's",
    "tinyllama-dense.yaml": "0.00% of the layers' FLOPs saved, 0.00% of the whole model's",
    "tinyllama-dense-short.yaml": "0.00% of the layers' FLOPs saved, 0.00% of the whole model's",
}


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    runpy.run_path(str(FOLDER / "pretrain.py"), run_name="__main__")


@pytest.mark.sweep("name", days=3)
@pytest.mark.parametrize("name", FILES)
def test_two_steps_of_each_stage_at_full_size(name, monkeypatch, capsys):
    run(monkeypatch, str(FOLDER / name), "--shapes")
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(SAVED[name])
    stages = 1 if "dense" in name else 3
    assert printed.count("two steps") == stages


@pytest.mark.sweep("name", days=3)
@pytest.mark.parametrize("name", FILES)
def test_twenty_steps_cut_down(name, monkeypatch, capsys):
    before = torch.get_rng_state()
    run(monkeypatch, str(FOLDER / name), "--rehearse")
    torch.set_rng_state(before)
    assert "loss on held-out text" in capsys.readouterr().out


def test_the_readme_has_each_file_with_what_it_saves():
    text = (FOLDER / "README.md").read_text()
    for name, saved in SAVED.items():
        layers, model = (word.rstrip("%") for word in saved.split() if word.endswith("%"))
        row = f"| `{name}` | – | – |" if layers == "0.00" else f"| `{name}` | {layers} % | {model} % |"
        assert row in text


def test_files_of_one_model_differ_by_the_schedule_alone():
    for model in ("gpt2-base", "tinyllama"):
        every = [yaml.safe_load((FOLDER / f"{model}-{name}.yaml").read_text()) for name in ("dense", "est", "compound")]
        for settings in every:
            settings.pop("schedule")
        assert every[0] == every[1] == every[2]


def test_the_short_ones_have_as_many_flops_as_est_spends():
    for model in ("gpt2-base", "tinyllama"):
        files = (FOLDER / f"{model}-{name}.yaml" for name in ("dense", "dense-short"))
        dense, short = (yaml.safe_load(file.read_text()) for file in files)
        saved = float(SAVED[f"{model}-est.yaml"].split()[-5].rstrip("%")) / 100
        steps, of_all = short["training"].pop("max_steps"), dense["training"].pop("max_steps")
        assert steps == round((1 - saved) * of_all, -1)
        assert short["training"].pop("lr_scheduler_kwargs") == {"num_decay_steps": steps // 5}
        assert dense["training"].pop("lr_scheduler_kwargs") == {"num_decay_steps": of_all // 5}
        assert short == dense


def test_a_run_needs_a_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, str(FOLDER / FILES[0]))
    assert "--out FOLDER is needed" in capsys.readouterr().err
