"""`estfx plan`, and what it is made of: savings that are asked for, parts, hours, a run to be trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_decoders import build
from typer.testing import CliRunner

import estfx
from estfx.cli.main import app
from estfx.costs.flops import graph_cost, measure_surroundings
from estfx.costs.hardware import hours, peak_of
from estfx.costs.operator_flops import node_flops
from estfx.costs.schedule_plan import Plan
from estfx.costs.target_saving import schedule_saving
from estfx.errors import ScheduleError
from estfx.programs.program import analysed
from estfx.schedules.measured_losses import KindOfRun, measured_losses
from estfx.schedules.schedule import Schedule
from estfx.settings import SettingsError
from estfx.tracing.capture import default_inputs
from estfx.training.train_config import RunConfig

TINY = ["n_layer=2", "n_embd=16", "n_head=2", "vocab_size=300", "n_positions=64"]
CONFIG = [word for value in TINY for word in ("--config", value)]
SIZES = ["--batch-size", "2", "--seq-len", "32", "--total-steps", "1000"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["plan", "gpt2", *CONFIG, *SIZES, *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    stderr: str = result.stderr
    return stderr


def planned(schedule: Schedule, name: str = "llama_grouped") -> Plan:
    return estfx.plan(build(name), schedule, batch_size=2, seq_len=12)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "falcon"])
def test_the_parts_are_all_of_the_forward_pass(name: str) -> None:
    model = build(name)
    decoder = estfx.trace(model)
    inputs = default_inputs(model, 2, 12)
    surroundings = measure_surroundings(decoder, inputs)
    for layer, program in decoder.layers.items():
        graph = analysed(decoder.traced[program]).narrowed(())
        cost = graph_cost(graph, surroundings.inputs[layer])
        assert sum(node_flops(graph, surroundings.inputs[layer]).values()) == cost.flops_forward
    plan = planned(Schedule.est(1000), name)
    assert set(plan.whole.flops_forward) == {"heads", "neurons"}
    assert plan.stages[1].flops_forward["neurons"] == pytest.approx(plan.whole.flops_forward["neurons"] / 2)


@pytest.mark.parametrize("target", [0.05, 0.2, 0.3])
def test_boundaries_for_a_saving(target: float) -> None:
    schedule = Schedule.est(10_000)
    found = schedule_saving(planned(schedule), schedule, target)
    assert target <= planned(found).saving_model < target + 0.001
    assert planned(schedule).with_boundaries(found) == planned(found)
    first, second = (stage.start for stage in found.stages[1:])
    assert first / second == pytest.approx(20 / 70, rel=1e-2)


def test_a_saving_that_cannot_be_is_refused() -> None:
    schedule = Schedule.est(1000)
    with pytest.raises(ScheduleError, match=r"can save up to \d+\.\d% of the model's FLOPs.*90\.0% were asked for"):
        schedule_saving(planned(schedule), schedule, 0.9)
    constant = Schedule.constant(0.5, 1000)
    with pytest.raises(ScheduleError, match="the last of several stages is the whole model"):
        schedule_saving(planned(constant), constant, 0.2)


def test_a_schedule_is_made_for_a_saving() -> None:
    model = build("llama_grouped")
    compound = estfx.schedule_for_saving(model, 0.25, 3000, batch_size=2, seq_len=12)
    assert [(stage.heads, stage.layers) for stage in compound.stages] == [(0.5, 0.5), (0.75, 0.75), (1.0, 1.0)]
    assert compound.copies_layers
    assert 0.25 <= planned(compound).saving_model < 0.251
    model.name_or_path = "a folder with weights that copies would overwrite"
    growing = estfx.schedule_for_saving(model, 0.25, 3000, batch_size=2, seq_len=12)
    assert [(stage.heads, stage.layers) for stage in growing.stages] == [(0.25, 1.0), (1.0, 1.0)]
    assert not growing.copies_layers
    assert growing.resample_every == "never"
    assert 0.25 <= planned(growing).saving_model < 0.251
    schedule = estfx.schedule_for_saving(build("llama_grouped"), 0.25, 3000, preset="est", batch_size=2, seq_len=12)
    assert schedule.total_steps == 3000
    assert [(stage.heads, stage.layers) for stage in schedule.stages] == [(0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    found = planned(schedule)
    assert 0.25 <= found.saving_model < 0.251 < found.saving_layers
    with pytest.raises(ScheduleError, match=r"can save up to .* 90\.0% were asked for"):
        estfx.schedule_for_saving(build("llama_grouped"), 0.9, 3000)


def test_hours_by_hand() -> None:
    assert peak_of("h100-pcie") == ("H100 PCIe", 756e12)
    assert hours(989e12 * 0.4 * 8 * 3600, 989e12, 0.4, 8) == pytest.approx(1)
    with pytest.raises(SettingsError, match="unknown hardware 'h101'; did you mean 'h100'"):
        peak_of("h101")


def test_the_table_and_the_json_say_the_same() -> None:
    text = run("--hardware", "h200", "--price", 3, "--num-devices", 2)
    assert text.exit_code == 0, text.output
    found = json.loads(run("--hardware", "h200", "--price", 3, "--num-devices", 2, "--json").stdout)
    assert f"{found['saving']['model']:.2%} of the whole model's" in text.stdout
    assert "on 2 × H200" in text.stdout
    assert "40% (assumed) of 989 TFLOPs a second" in text.stdout
    assert found["estimate"]["cost"] == pytest.approx(6 * found["estimate"]["hours"])
    assert found["plan"]["stages"][0]["units"] == {"heads": [2, 4], "neurons": [64, 128], "layers": [1, 2]}
    assert found["plan"]["programs"] == 3  # a half, three quarters and the whole
    papers = found["est"]
    assert [stage["start"] for stage in papers["stages"]] == [0, 133, 467]
    saved = 1 - sum((s["stop"] - s["start"]) * s["flops_model"] for s in papers["stages"]) / (
        1000 * papers["whole"]["flops_model"]
    )
    assert (
        f"--preset est, the paper's, saves {saved:.2%} of the whole model's, and is whole from step 467" in text.stdout
    )
    assert "instead" not in run("--preset", "stacking").stdout


def test_the_papers_schedule_is_compared_at_the_same_saving_or_not_at_all() -> None:
    found = json.loads(run("--target-saving", 0.1, "--json").stdout)
    papers = found["est"]
    saved = [stage["steps"] if "steps" in stage else stage["stop"] - stage["start"] for stage in papers["stages"]]
    spent = sum(n * stage["flops_model"] for n, stage in zip(saved, papers["stages"], strict=True))
    assert 1 - spent / (1000 * papers["whole"]["flops_model"]) == pytest.approx(0.1, abs=2e-3)
    assert found["saving"]["model"] == pytest.approx(0.1, abs=2e-3)


def test_little_is_left_for_the_whole() -> None:
    result = run("--target-saving", 0.25)
    assert result.exit_code == 0, result.output
    assert re.search(r"warning: stage 3 is left \d+ of 1,000 steps \([\d.]+%\)\. With less than 20%", result.stderr)
    assert "warning" not in run().stderr


def test_a_run_of_bytes_says_that_its_vocabulary_is_another(tmp_path: Path) -> None:
    config = ["n_layer=2", "n_embd=16", "n_head=2", "n_positions=64"]
    given = [word for value in config for word in ("--config", value)]
    result = CliRunner().invoke(app, ["plan", "gpt2", *given, *SIZES, "--out", str(tmp_path / "run.yaml")])
    assert "its vocab_size is 257; the figures shown are for 50,257" in result.stderr
    written = RunConfig.load(tmp_path / "run.yaml").resolved().model.config
    assert (written["vocab_size"], written["eos_token_id"]) == (257, 256)
    assert "vocab_size is" not in run("--out", tmp_path / "own.yaml").stderr  # which says a vocab_size itself
    assert RunConfig.load(tmp_path / "own.yaml").model.config["vocab_size"] == 300


def test_it_prints_and_draws_itself(tmp_path: Path) -> None:
    plan = planned(Schedule.est(1000))
    assert "activations" in str(plan)
    assert f"{plan.saving_layers:.2%} of the layers'" in str(plan)
    assert str(plan).splitlines()[2] == run("--preset", "est").stdout.splitlines()[3].rstrip()
    pytest.importorskip("matplotlib")
    (axes,) = plan.plot(tmp_path / "plan.svg", title="tiny").axes
    assert "tiny: " in (tmp_path / "plan.svg").read_text()
    (filled,) = [patch for patch in axes.patches if patch.get_label() == "computed"]
    heights = [stage.flops_model / plan.whole.flops_model for stage in plan.stages]
    assert list(filled.get_data().values) == pytest.approx(heights)


def test_a_run_to_be_trained(tmp_path: Path) -> None:
    result = run("--target-saving", 0.1, "--out", tmp_path / "run.yaml")
    assert result.exit_code == 0, result.output
    config = RunConfig.load(tmp_path / "run.yaml", ["train.total_steps=1000"])
    assert config.model.config["n_embd"] == 16
    assert (config.data.seq_len, config.train.batch_size) == (32, 2)
    assert config.schedule.stages is not None
    assert len(config.schedule.stages) == 3
    resolved = config.resolved()
    assert resolved.model.config["n_layer"] == 2


@pytest.mark.sweep(day=0, days=2)
def test_a_plan_of_a_factory(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import torch\nfrom hand_written import Decoder, PreNorm\n"
        "def make():\n    return Decoder(PreNorm(), PreNorm()), (torch.zeros(1, 8, dtype=torch.long),)\n"
    )
    result = CliRunner().invoke(app, ["plan", f"{tmp_path / 'own.py'}:make", "--seq-len", "16", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"]["seq_len"] == 16


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("plan.png", "plan.svg"):
        assert run("--plot", tmp_path / name).exit_code == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert "is written as .png or .svg, not as '.pdf'" in refused("--plot", tmp_path / "plan.pdf")


def test_measured_mfu(tmp_path: Path) -> None:
    assert "cannot be read" in refused("--hardware", "h200", "--bench", tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    assert "is not what `estfx bench --out` writes" in refused("--hardware", "h200", "--bench", tmp_path / "other.json")
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    measured = next(results.glob("bench-gpt2-*.json"))
    result = run("--hardware", "h200", "--bench", measured)
    assert result.exit_code == 0, result.output
    assert "measured on CPU" in result.stdout


def test_by_default_a_sequence_is_as_long_as_the_model_takes() -> None:
    found = CliRunner().invoke(app, ["plan", "gpt2", *CONFIG, "--total-steps", "1000", "--json"])
    assert json.loads(found.stdout)["plan"]["seq_len"] == 64


def test_refusals(tmp_path: Path) -> None:
    assert "add --hardware" in refused("--mfu", 0.5)
    assert "--mfu is a share above 0 and at most 1" in refused("--hardware", "h200", "--mfu", 1.5)
    assert "greater than or equal to 0" in refused("--hardware", "h200", "--price", -1)
    assert "keep is a fraction above 0 and at most 1" in refused("--preset", "est", "--keep", 0)
    assert "the model takes 64 positions, but --seq-len is 65" in refused("--seq-len", 65)
    assert "give either --mfu or --bench" in refused("--hardware", "h200", "--mfu", 0.5, "--bench", tmp_path / "x")
    assert "were asked for" in refused("--target-saving", 0.99)


def test_what_was_measured_of_such_a_schedule_is_quoted_with_what_is_unlike_it() -> None:
    text, found = run().stdout, json.loads(run("--json").stdout)["losses"]
    known = measured_losses()
    assert found["kind"]["family"] == "gpt2"
    assert found["kind"]["steps"] == 1000
    assert found["kind"]["tokens_per_parameter"] == pytest.approx(1000 * 2 * 32 / found_parameters())
    assert [one["preset"] for one in found["presets"]] == ["compound", "est"]
    kind = KindOfRun(**found["kind"])
    nearest = known.nearest(["compound", "est"], kind)  # both from one run
    assert nearest is not None
    assert nearest.family == "gpt2"
    for one in found["presets"]:
        assert one["run"] == nearest.model_dump(mode="json")
        assert f"{one['preset']} {nearest.presets[one['preset']].above_dense:.3f}" in text
    law = known.law("est")
    assert law is not None
    assert found["presets"][1]["predicted"] == list(law.at(1000))
    assert f"est {law.at(1000)[0]:.3f}" in text
    unlike = list(nearest.unlike(kind))
    assert any("parameters" in each for each in unlike)  # of so small a model nothing is known
    assert found["presets"][0]["unlike"] == unlike
    assert f"unlike that one: {', '.join(unlike)}; so it is no forecast" in text
    assert known.why in text


def test_a_law_of_one_family_is_not_quoted_for_another() -> None:
    tiny = ("num_hidden_layers=2", "hidden_size=16", "intermediate_size=32", "num_attention_heads=2", "vocab_size=64")
    config = [word for value in tiny for word in ("--config", value)]
    found = CliRunner().invoke(app, ["plan", "llama", *config, *SIZES, "--json"])
    quoted = json.loads(found.stdout)["losses"]["presets"]
    assert {one["run"]["family"] for one in quoted} == {"llama"}
    assert [one["law"] for one in quoted] == [None, None]


def found_parameters() -> float:
    whole = json.loads(run("--json").stdout)["plan"]["whole"]
    return float(whole["parameters"])


def test_of_a_schedule_that_is_no_preset_nothing_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    Schedule.model_validate({"stages": [{"start": 0, "heads": 0.5}, {"start": 9}], "total_steps": 1000}).to_yaml(path)
    result = run(path)
    assert result.exit_code == 0, result.output
    assert "nats a byte" not in result.stdout
    Schedule.stacking(1000).to_yaml(path)
    assert "stacking" in run(path).stdout
