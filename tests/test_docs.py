"""Every block of code in the documentation is run, or checked as far as it can be without running.

What stands in the pages beside the blocks, as HTML comments:

    <!-- setup … -->            Python that the page's blocks need and no reader does
    <!-- run -->                above a block of sh: its `estfx` commands are run; those of any other are only parsed
    <!-- output -->             above a block of text: what the last block that was run printed; a line … stands for any
    <!-- output, figures vary -->   likewise, but for the numbers
    <!-- not run: reason -->    above a block of Python

A block with a title="file" is written to that file. `pytest --update-golden` writes the output into the pages anew.
"""

import contextlib
import importlib.util
import inspect
import io
import linecache
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from typer.testing import CliRunner

import estfx
from estfx.bench import BenchSettings
from estfx.cli.main import app
from estfx.programs import compilation
from estfx.schedules.schedule import Schedule
from estfx.settings import SettingsError, parse_yaml
from estfx.training.model_argument import parse_options
from estfx.training.train_config import RunConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md") if "architectures" not in path.name)

PIECE = re.compile(
    r"^<!-- (?P<word>setup|run|output|not run)(?P<rest>.*?)-->$"
    r"|^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    language: str
    text: str
    title: str | None
    mark: str  # of the comment right above
    start: int  # of the text in the page
    line: int


def blocks_of(page: str) -> list[Block]:
    blocks: list[Block] = []
    mark, mark_end = "", 0
    for piece in PIECE.finditer(page):
        line = page.count("\n", 0, piece.start()) + 1
        if piece["word"] == "setup":
            blocks.append(Block("python", piece["rest"], None, "", piece.start("rest"), line - 1))
        elif piece["word"]:
            mark, mark_end = (piece["word"] + piece["rest"]).strip(), piece.end()
        else:
            above = mark if not page[mark_end : piece.start()].strip() else ""
            blocks.append(Block(piece["language"], piece["text"], piece["title"], above, piece.start("text"), line))
    return blocks


def estfx_commands(text: str) -> list[list[str]]:
    """The arguments of each `estfx` in a piece of shell."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        argv: list[str] | None = None
        for word in words:
            if set(word) <= set("&|;<>()"):
                argv = None
            elif argv is not None:
                argv.append(word)
            elif Path(word).name == "estfx":
                argv = []
                commands.append(argv)
    return commands


def parse(argv: list[str]) -> None:
    """Raises if there is no such command, option or setting."""
    group = typer.main.get_command(app)
    context = group.make_context("estfx", list(argv))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    values = command.make_context(name, rest, parent=context).params
    if name == "train":
        RunConfig.load(None, values["overrides"] or ())
    if name == "bench":
        BenchSettings.from_mapping(parse_options(values["overrides"] or ()))


def load_settings(text: str) -> None:
    """A block of YAML is a schedule or a run."""
    data = parse_yaml(text)
    try:
        RunConfig.from_mapping(data)
    except SettingsError:
        if "stages" not in data:
            raise
        Schedule.from_mapping(data)


def same(shown: str, printed: str, figures: bool) -> bool:
    """Whether the page shows what was printed. The lines of other packages' code are theirs to move."""

    def pattern(line: str) -> str:
        if line.strip() == "…":
            return "(?:.*\n)*?"
        escaped = re.sub(r"(?:\\ )+", " +", re.escape(line.strip()))  # columns may stand closer in the page
        return " *" + (escaped if figures else re.sub(r"\d+(?:\\\.\d+)?", "[0-9.]+", escaped)) + "\n"

    shown, printed = (re.sub(r"(?<=#) \S+\.py:\d+;?", "", text) for text in (shown, printed))
    return re.fullmatch("".join(map(pattern, shown.splitlines())), printed) is not None


def tidied(printed: str) -> str:
    """Without spaces at the ends of lines and empty lines at the ends of the text."""
    lines = [line.rstrip() for line in printed.splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return "".join(f"{line}\n" for line in lines)


def elided(now: str, shown: str) -> str:
    """What is printed now, with … for the lines that the page does not show either, as far as they can be told."""
    if "…" not in shown.splitlines():
        return now

    def column(line: str) -> str:
        return re.split(" {2,}", line.strip())[0]

    lines, rest = [], now.splitlines()
    for wanted in (column(line) for line in shown.splitlines() if line != "…"):
        at = next((i for i, line in enumerate(rest) if column(line) == wanted), None)
        if at is None:
            return now
        lines += ["…"] * (at > 0) + [rest[at]]
        rest = rest[at + 1 :]
    return "".join(f"{line}\n" for line in narrow(lines) + ["…"] * bool(rest))


def narrow(lines: list[str]) -> list[str]:
    """Lines in columns, with no more than two spaces in between."""
    rows = [line for line in lines if line[0] not in "#…"]
    blank = [all(line[i : i + 1] in ("", " ") for line in rows) for i in range(max(map(len, rows)))]
    kept = [i for i in range(len(blank)) if not all(blank[max(0, i - 2) : i + 1])]
    return ["".join(line[i : i + 1] for i in kept).rstrip() if line in rows else line for line in lines]


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as Python itself does for a script in it
    monkeypatch.setenv("COLUMNS", "100")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.sweep("name", days=2)
@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_the_code_of_a_page(name, in_a_folder, monkeypatch, request):
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    if name == "docs/how-to/speed.md" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("torch has no linear_cross_entropy, which the page shows")
    if name != "docs/how-to/speed.md":  # elsewhere compiling is not the point
        monkeypatch.setitem(inspect.unwrap(estfx.transform).__kwdefaults__, "compile", False)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    page = (ROOT / name).read_text(encoding="utf-8")
    printed = io.StringIO()
    updated: list[tuple[Block, str]] = []
    for block in blocks_of(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "python" and not block.title and not block.mark.startswith("not run:"):
            printed.truncate(printed.seek(0))
            source, where = "\n" * block.line + block.text, f"{name}, from line {block.line}"
            linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)
            code = compile(source, where, "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, module.__dict__)
        elif block.language == "sh":
            for argv in estfx_commands(block.text):
                parse(argv)
                if block.mark == "run":
                    printed.truncate(printed.seek(0))
                    done = CliRunner().invoke(app, argv, catch_exceptions=False)
                    printed.write(done.output)
        elif block.language == "yaml":
            load_settings(block.text)
        elif block.language == "text" and block.mark.startswith("output"):
            now = tidied(printed.getvalue())
            if same(block.text, now, figures="figures vary" not in block.mark):
                continue
            updated.append((block, now))
    if updated and request.config.getoption("--update-golden"):
        for block, now in reversed(updated):
            now = elided(now, block.text)
            page = page[: block.start] + now + page[block.start + len(block.text) :]
        (ROOT / name).write_text(page, encoding="utf-8")
    elif updated:
        block, now = updated[0]
        assert now == block.text, f"{name}:{block.line} shows another output than there is now"


def test_a_command_that_does_not_exist_is_found():
    (argv,) = estfx_commands("pip install x && .venv/bin/estfx trian --set a=b | tee log")
    assert argv == ["trian", "--set", "a=b"]
    with pytest.raises(Exception, match="No such command 'trian'"):
        parse(argv)
    with pytest.raises(Exception, match="No such option"):
        parse(["train", "--sett", "a=b"])
    with pytest.raises(SettingsError, match="unknown key 'total_step'"):
        parse(["train", "--set", "train.total_step=4"])


def test_another_output_is_found():
    assert same("a  1.5\n…\nc\n", "a  1.5\nb\nb\nc\n", figures=True)
    assert not same("a  1.5\n", "a  1.6\n", figures=True)
    assert same("a  1.5 s\n", "a   20.25 s\n", figures=False)
    assert same("a  # b.py:5\n", "a    # b.py:6\n", figures=True)


def test_what_a_page_leaves_out_stays_left_out():
    now = "# x\n    %a = 1    i64\n    %b = 2    f32[1]\n    return\n"
    assert elided(now, "# x\n…\n%b = 2   f16\n…\n") == "# x\n…\n%b = 2  f32[1]\n…\n"
    assert elided(now, "# x\n…\n%c = 2   f16\n") == now


@pytest.fixture(scope="module")
def generate():
    """The script that makes pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def test_the_generated_pages_are_current(generate):
    for name, make in generate.PAGES.items():
        committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert committed == make(), "run `python docs/generate_reference.py`"


def undescribed(table):
    """The keys of a table of settings that nothing is said about."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    assert rows
    return [row[0].strip() for row in rows if not row[-1].strip()]


def test_every_setting_says_what_it_is(generate):
    page = generate.settings_page()
    assert undescribed(page) == [], "a comment beside or above a field of settings is its description"
    shown = set(generate.RUN.values()) | {Schedule, estfx.Stage, BenchSettings}
    keys = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(keys) == sum(len(model.model_fields) for model in shown)


def test_a_setting_without_a_comment_is_found(generate, tmp_path):
    file = tmp_path / "odd_settings.py"
    file.write_text("class Odd:\n    described: int = 1  # of something\n\n    bare: int = 2\n")
    members = generate.griffe.load("odd_settings", search_paths=[tmp_path])["Odd"].members
    about = {name: generate.comment_of(members[name]) for name in ("described", "bare")}
    assert about == {"described": "of something", "bare": ""}
    table = "\n".join(f"| `{name}` | whole number | `1` | {text} |" for name, text in about.items())
    assert undescribed(table) == ["`bare`"]


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: estfx\.(?:\w+\.)*(\w+)$", page, re.MULTILINE))
    assert named >= set(estfx.__all__)


class _Loaded(HTMLParser):
    """The addresses that a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "input"):
            self.addresses += [given.get("src") or "", *(given.get("srcset") or "").split(",")]
        if tag == "object":
            self.addresses.append(given.get("data") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.addresses.append(given.get("href") or "")


@pytest.mark.sweep(day=0, days=2)
def test_the_site_builds_and_needs_no_network(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in loaded.addresses if re.match(r"\s*(https?:)?//", each)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet
    assert (site / "search" / "search_index.js").exists()  # the search of a site without a server


def test_promises_name_tests_that_are_there():
    text = (ROOT / "docs" / "explanation" / "promises.md").read_text()
    named = re.findall(r"`(tests/\S+?)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).is_file()] == []
