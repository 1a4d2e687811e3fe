import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from estfx.cli.main import app
from estfx.run_report import contents_of, read_runs, write_report
from estfx.run_report.page import DARK, page
from estfx.showing import LIGHT

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "link", "br"}


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


class Page(HTMLParser):
    """Tags must close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    result = report(runs / "evolving", runs / "whole", "--out", file)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{file}\n", "")
    return file


def test_the_page_holds_the_figures_of_the_runs(both, runs):
    text = Page(both.read_text()).text
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("evolving", "whole")]
    for summary in summaries:
        held_out = summary["held_out_loss"]
        assert f"{held_out['before']:.4f} → {held_out['after']:.4f}" in text
    saved = summaries[0]["flops_saved"]
    assert f"{100 * saved['layers']:.1f} % {100 * saved['model']:.1f} %" in text
    assert (
        f"{summaries[0]['held_out_loss']['after'] - summaries[1]['held_out_loss']['after']:+.4f}".replace("-", "−")
        in text
    )
    for stage in summaries[0]["stages"][1:]:
        assert f"{100 * stage['flops_of_whole_model']:.1f}".removesuffix(".0") + " %" in text
    for words in ("Counted over all 8 steps done", "trained at every one of the 8 steps", "seq_len: 16", "torch"):
        assert words in text


def test_the_page_needs_nothing_from_elsewhere(both):
    text = both.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", text)
    assert text.count("<script") == 1
    for tag, name, value in Page(text).attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith(("#", "data:")), (tag, value)
    assert len(text) < 500_000


def test_the_page_can_be_read_out(both):
    found = Page(both.read_text())
    assert len(found.ids) == len(set(found.ids))
    text = both.read_text()
    assert '<html lang="en">' in text
    assert text.count("<table") == text.count("<table aria-labelledby=")
    assert text.count("<svg") == text.count('role="img" aria-label=') + text.count('aria-hidden="true"')
    for section in re.findall(r'aria-labelledby="([^"]*)"', text):
        assert section in found.ids


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_stand_out_from_their_ground(colours):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name, least in [("text", 7), ("muted", 4.5), *[(f"run-{n}", 4.5) for n in range(1, 7)]]:
        for ground in ("ground", "shade") if name != "text" else ("ground",):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= (least if ground == "ground" else 3), (name, ground)
    assert set(DARK) == set(LIGHT)


@pytest.mark.sweep(day=1, days=2)
def test_names_are_escaped(evolving, tmp_path):
    odd = evolving.rename(tmp_path / "_<b>&$x$\"'")
    text = page(contents_of(read_runs([odd])))
    assert "<b>&$x$" not in text
    assert "_<b>&$x$\"'" in Page(text).text
    assert report(odd, "--format", "svg", "--out", tmp_path / "figures").exit_code == 0


@pytest.mark.parametrize(
    "damage", ["metrics.jsonl", "summary.json", "made_with.json", "config.yaml", "environment.json"]
)
def test_the_page_tells_what_is_missing(evolving, damage):
    file = evolving / damage
    file.write_text(file.read_text()[:-5] + ("" if damage != "config.yaml" else ": ["))
    result = report(evolving)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: evolving ")
    assert result.stdout == f"{evolving / 'report.html'}\n"
    text = Page((evolving / "report.html").read_text()).text
    assert "What is missing" in text
    for line in result.stderr.splitlines():
        assert line.removeprefix("note: ") in text


def test_what_cannot_be_compared_stands_first(evolving, whole):
    config = whole / "config.yaml"
    config.write_text(config.read_text().replace("name: gpt2", "name: llama"))
    text = Page(page(contents_of(read_runs([evolving, whole])))).text
    assert (
        text.index("Not everything here can be compared")
        < text.index("train different models")
        < text.index("Loss The")
    )


@pytest.mark.parametrize(("steps", "changes"), [(1, {}), (3, {"loss": float("nan")})])
def test_a_run_that_has_only_begun_is_drawn(evolving, lines_of, steps, changes):
    (evolving / "summary.json").unlink()
    lines = [line for line in lines_of(evolving) if line["kind"] == "step"][:steps]
    (evolving / "metrics.jsonl").write_text("".join(json.dumps(line | changes) + "\n" for line in lines))
    found = contents_of(read_runs([evolving]))
    assert f"Counted over all {steps} steps done" in Page(page(found)).text
    write_report(found, "png")


def test_json_is_printed_alone(runs, evolving, whole):
    result = report(evolving, whole, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    data = json.loads(result.stdout)
    summary = json.loads((runs / "evolving" / "summary.json").read_text())
    assert [each["label"] for each in data["runs"]] == ["evolving", "whole"]
    assert data["runs"][0]["flops_saved"] == summary["flops_saved"]
    assert data["runs"][0]["stages"] == summary["stages"]
    assert len(data["runs"][0]["curves"]["training"]["loss"]) == 8
    assert set(data["runs"][0]["trained_units"]["roles"]) == {"heads", "neurons"}
    assert not (evolving / "report.html").exists()


def test_json_is_written(evolving):
    result = report(evolving, "--format", "json")
    assert result.stdout == f"{evolving / 'report.json'}\n"
    assert json.loads((evolving / "report.json").read_text())["runs"][0]["steps"] == 8


@pytest.mark.parametrize(("output", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_figures_are_written(evolving, whole, tmp_path, output, magic):
    result = report(evolving, whole, "--format", output, "--out", tmp_path / "a" / "figures")
    assert (result.exit_code, result.stderr) == (0, "")
    files = {file.name for file in (tmp_path / "a" / "figures").iterdir()}
    names = ("loss-step", "loss-tokens", "loss-flops", "loss-seconds", "seconds")
    maps = ("trained-1-layers", "trained-1-heads", "trained-1-neurons")
    assert files == {f"{name}.{output}" for name in (*names, *maps)}
    assert (tmp_path / "a" / "figures" / f"loss-step.{output}").read_bytes().startswith(magic)


@pytest.mark.sweep(day=0, days=2)
def test_several_runs_are_written_about_in_the_current_folder(evolving, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report("evolving", "whole").stdout == "report.html\n"
    assert report("evolving", "--format", "png").stdout == "evolving/report-figures\n"
    assert (tmp_path / "evolving" / "report-figures" / "loss-step.png").exists()


@pytest.mark.parametrize("output", ["html", "json", "png"])
def test_a_place_that_cannot_be_written_to_is_refused(evolving, tmp_path, output):
    (tmp_path / "file").write_text("")
    result = report(evolving, "--format", output, "--out", tmp_path / "file" / "below")
    assert result.exit_code == 2
    assert "cannot write the report to" in result.stderr
    assert "choose another --out" in result.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    result = report(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds no run" in result.stderr


def test_without_matplotlib_there_is_json(evolving, monkeypatch):
    monkeypatch.setattr("estfx.run_report.write.find_spec", lambda name: None)
    result = report(evolving)
    assert result.exit_code == 2
    for words in ("matplotlib", "pip install 'estfx[plot]'", "--format json"):
        assert words in result.stderr
    assert report(evolving, "--format", "json").exit_code == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_opens_the_page_without_errors(both, tmp_path):
    def console(file):
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{file}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    faulty = tmp_path / "faulty.html"
    faulty.write_text("<!DOCTYPE html><title>x</title><script>console.error('seen')</script>")
    assert len(console(faulty)[1]) == 1
    dom, errors = console(both)
    assert errors == []
    assert "Which parts were trained how often" in dom


@pytest.mark.parametrize("output", ["html", "svg"])
def test_nothing_that_a_run_folder_says_leaves_its_place(output, evolving, tmp_path):
    """Names of roles, layers and the folder reach texts, ids and names of files."""
    hostile = 'x/../../out"><script>alert(1)</script>'
    made_with = json.loads((evolving / "made_with.json").read_text())
    assert '"heads"' in json.dumps(made_with["layers"])
    made_with["layers"] = json.loads(json.dumps(made_with["layers"]).replace('"heads"', json.dumps(hostile)))
    (evolving / "made_with.json").write_text(json.dumps(made_with))
    before = {path for path in tmp_path.rglob("*") if "evolving" not in path.parts}
    contents = contents_of(read_runs([evolving]))
    out = tmp_path / "report" / ("page.html" if output == "html" else "figures")
    write_report(contents, output, out)
    written = {path for path in tmp_path.rglob("*") if "evolving" not in path.parts} - before
    assert all(path == out or out in path.parents or path == out.parent for path in written)
    for path in written:
        if path.is_file():
            assert "<script>alert" not in path.read_text()
