import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import estfx
from estfx.cli.main import app

TINY = ["n_layer=2", "n_embd=16", "n_head=2", "vocab_size=32", "n_positions=32"]
CONFIG = [word for value in TINY for word in ("--config", value)]
TRAIN = [
    word
    for value in (
        "model.config.num_hidden_layers=2",
        "model.config.hidden_size=16",
        "model.config.num_attention_heads=2",
        "data.seq_len=16",
        "data.held_out_blocks=2",
        "train.batch_size=2",
        "train.total_steps=4",
        "train.compile=false",
    )
    for word in ("--set", value)
]
ONE_KV_HEAD = ("--set", "model.config.num_key_value_heads=1")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, *messages):
    """Exit status 2, one message on the standard error, no traceback, nothing on the standard output."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for message in messages:
        assert message in result.stderr


def test_the_version_is_told():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("estfx")


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    for command in ("train", "inspect", "plan", "dump", "bench", "report"):
        assert command in result.stdout


@pytest.mark.sweep(day=1, days=2)
def test_the_module_runs_as_the_script_does():
    done = subprocess.run(
        [sys.executable, "-m", "estfx", "inspect", "gpt-2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'gpt-2'; did you mean 'gpt2'")
    assert "Traceback" not in done.stderr


def test_train_prints_a_summary_and_leaves_a_run(tmp_path):
    result = run("train", "--out", tmp_path / "run", *TRAIN)
    assert result.exit_code == 0, result.output
    assert "FLOPs saved" in result.stdout
    assert "stage 1  layers 1/2" in result.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "environment.json",
        "made_with.json",
        "metrics.jsonl",
        "model",
        "summary.json",
    }


def test_train_prints_json_alone(tmp_path):
    result = run("train", "--model", "llama", "--out", tmp_path / "run", "--json", *TRAIN, *ONE_KV_HEAD)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "llama"


def test_train_reads_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("schedule: {preset: constant}\n")
    result = run("train", file, "--out", tmp_path / "run", "--json", *TRAIN)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["stages"]) == 1


def test_a_lost_loss_is_failed_work(tmp_path):
    result = run(
        "train", "--out", tmp_path, *TRAIN,
        "--set", "train.learning_rate=1e30", "--set", "train.max_grad_norm=1e30", "--set", "train.warmup_steps=0",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "error: the loss is" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("train: [", "this is not YAML"),
        ("train: {totl_steps: 3}", "unknown key 'totl_steps'; did you mean 'total_steps'"),
        ("schedule: {stages: [{start: 0}, {start: 0}]}", "stage 2 starts at step 0, but stage 1 starts at 0"),
        ("schedule: {stages: []}", "a schedule needs at least one stage"),
        ("schedule: {keep: 0}", "keep must be greater than 0, got 0"),
    ],
)
def test_train_refuses_a_bad_file(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    assert_refused(
        run("train", file, "--out", tmp_path / "run"), "run.yaml" if "schedule" not in str(text) else "", message
    )


def test_train_refuses_bad_options(tmp_path):
    assert_refused(run("train", "--set", "train.seed", "--out", tmp_path), "expected key=value, got 'train.seed'")
    assert_refused(run("train", "--model", "gpt-2", "--out", tmp_path), "did you mean 'gpt2'")
    assert_refused(run("train", "--no-such-option"))


def test_train_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(run("train", "--out", tmp_path / "file" / "run", *TRAIN), "cannot write to the folder")
    assert_refused(run("train", "--out", "/proc/nothing/here", *TRAIN), "cannot write to the folder")


REFUSED = {
    ("plan", "gpt2", "--target-saving", "25"): "a share between 0 and 1, such as 0.25; got 25; for 25 % pass 0.25.",
    ("plan", "gpt2", "--target-saving", "0"): "a share between 0 and 1, such as 0.25; got 0.",
    ("plan", "gpt2", "--plot", "plan.pdf"): "a plot is written as .png or .svg, not as '.pdf'.",
    ("plan", "gpt2", "--plot", "none/plan.svg"): "--plot none/plan.svg: there is no folder none; make it",
    ("plan", "gpt2", "--out", "folder"): "--out folder is a folder; name a file in it.",
    ("plan", "gpt2", "--hardware", "h1000"): "unknown hardware 'h1000'; did you mean 'h100'",
    ("train", "--model", "gtp2"): "unknown model 'gtp2'; did you mean 'gpt2'",
    (
        "train",
        "--model",
        "meta-llama/Llama-3",
    ): "Nothing is loaded from a hub: give the folder of a download, or a type",
    ("train", "folder"): "folder: this is a folder, and a YAML file is wanted",
    ("train", "--out", "file"): "file is a file; choose another --out.",
    ("train", "--set", "model.config.n_positions=8"): "the model takes 8 positions, but data.seq_len is",
    ("inspect", "folder"): "config.json has no model_type, which says what model it is",
    ("report", "file"): "file is a file; name the folder of a run",
}


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused_before_anything_is_written(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run(*command), REFUSED[command])
    assert sorted(tmp_path.rglob("*")) == before


def test_train_refuses_a_folder_with_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert_refused(run("train", "--out", tmp_path, *TRAIN), "holds a run; choose another --out, or go on with it")


def test_inspect_shows_layers_and_axes():
    result = run("inspect", "gpt2", *CONFIG)
    assert result.exit_code == 0, result.output
    for word in ("transformer.h.0", "heads", "neurons", "64"):
        assert word in result.stdout


def test_inspect_prints_the_report_as_json():
    result = run("inspect", "gpt2", *CONFIG, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [layer["name"] for layer in report["layers"]] == ["transformer.h.0", "transformer.h.1"]
    assert {axis["role"]: axis["size"] for axis in report["layers"][0]["axes"]} == {"heads": 2, "neurons": 64}


def test_inspect_reads_a_factory_and_a_folder(tmp_path):
    file = tmp_path / "models.py"
    file.write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "def make(layers=2):\n"
        "    config = GPT2Config(n_layer=layers, n_embd=16, n_head=2, vocab_size=32, n_positions=32)\n"
        "    config.save_pretrained('.')\n"
        "    return GPT2LMHeadModel(config)\n".replace("'.'", repr(str(tmp_path)))
    )
    result = run("inspect", f"{file}:make", "--config", "layers=3", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["layers"]) == 3
    assert len(json.loads(run("inspect", tmp_path, "--json").stdout)["layers"]) == 3


FACTORY = """
import sys
sys.path.insert(0, {tests!r})
import torch
from foreign_decoders import OddlyNamed
def make():
    return OddlyNamed(), (torch.zeros(3, 17, dtype=torch.long),)
"""


def test_layers_are_named(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(FACTORY.format(tests=str(Path(__file__).parents[1])))
    result = run("inspect", f"{file}:make", "--layers", "stack.*", "--json")
    assert result.exit_code == 0, result.output
    found = [layer["name"] for layer in json.loads(result.stdout)["layers"]]
    assert found == ["stack.first layer", "stack.second-layer", "stack.3"]
    result = run("dump", f"{file}:make", "--stage", "1", "--layers", "stack.3", "--layers", "stack.second-layer")
    assert result.exit_code == 0, result.output
    assert "2 layers (stack.second-layer, stack.3)" in result.stdout
    assert_refused(run("inspect", f"{file}:make", "--layers", "h.*"), "layers='h.*' matches no module of `OddlyNamed`")
    assert_refused(run("inspect", f"{file}:make"), "no layers found in `OddlyNamed`")


def test_inspect_refuses_what_is_no_model(tmp_path):
    assert_refused(run("inspect", "lama"), "unknown model 'lama'; did you mean 'llama'")
    assert_refused(run("inspect", "gpt2", "--config", "n_layers=2"), "did you mean 'n_layer'")
    assert_refused(run("inspect", "gpt2", "--config", "n_layer"), "expected key=value")
    assert_refused(run("inspect", tmp_path), "holds no config.json")
    assert_refused(run("inspect", "gpt2", *CONFIG, "--config", "n_layer=0"), "no layers found")
    assert_refused(run("inspect"))


def test_dump_prints_the_graphs_of_a_stage():
    texts = [run("dump", "gpt2", *CONFIG, "--stage", stage).stdout for stage in (1, 3)]
    assert all(texts)
    assert texts[0] != texts[1]


def test_dump_prints_json_and_takes_a_schedule(tmp_path):
    file = tmp_path / "schedule.yaml"
    estfx.Schedule.constant(0.5).to_yaml(file)
    result = run("dump", "gpt2", *CONFIG, "--stage", 1, "--schedule", file, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kinds"]


def test_dump_writes_a_file_in_a_format(tmp_path):
    result = run("dump", "gpt2", *CONFIG, "--format", "html", "--out", tmp_path / "page.html")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"written to {tmp_path / 'page.html'}" in result.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    result = run("dump", "gpt2", *CONFIG, "--diff", "--stage", 3)
    assert "the same as the whole layer" in result.stdout
    result = run("dump", "gpt2", *CONFIG, "--code")
    assert "def GPT2Block(stream, " in result.stdout
    result = run("dump", "gpt2", *CONFIG, "--pass", "find-axes")
    assert "take(" not in result.stdout


def test_dump_refuses_bad_input(tmp_path):
    file = tmp_path / "schedule.yaml"
    file.write_text("stages: [{start: 5}]")
    assert_refused(
        run("dump", "gpt2", *CONFIG, "--stage", 4), "there is no stage 4; the schedule has the stages 1 to 3"
    )
    assert_refused(run("dump", "gpt2", *CONFIG, "--stage", 0), "there is no stage 0")
    assert_refused(run("dump", "gpt2", *CONFIG, "--stage", "one"))
    assert_refused(run("dump", "gpt2", *CONFIG, "--stage", 1, "--schedule", file), "first stage must start at step 0")
    assert_refused(run("dump", "gpt2", *CONFIG, "--stage", 1, "--format", "poem"))
    assert_refused(run("dump", "gpt2", *CONFIG, "--diff", "--code"), "--diff and --code exclude each other")
    assert_refused(run("dump", "gpt2", *CONFIG, "--pass", "prune"), "there is no pass 'prune'")
    assert_refused(run("dump", "gpt2", *CONFIG, "--out", tmp_path / "none" / "x"), "there is no folder")
