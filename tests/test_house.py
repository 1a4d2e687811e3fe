"""The layout of the code: floors, doors, sizes, and what an import loads."""

from __future__ import annotations

import ast
import importlib
import json
import math
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changed_files import touched_tests

import estfx
from estfx.errors import ScheduleError
from estfx.moved_modules import MOVED

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "estfx"
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code and its configuration, to plant faults in."""
    for name in ("estfx", "passes", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


LINT = ("-c", "import sys; from importlinter.cli import lint_imports_command as c; sys.argv[1:] = ['--no-cache']; c()")


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("estfx/graphs/planted.py", "from estfx.runtime import Runtime", "An import only goes down"),
        ("estfx/axes/planted.py", "def f():\n    from estfx.programs import Variant", "An import only goes down"),
        (
            "estfx/tracing/planted.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from estfx.transformation import transform",
            "An import only goes down",
        ),
        ("estfx/bench/planted.py", "from estfx.run_report import read_runs", "An import only goes down"),
        ("estfx/costs/hardware.py", "from estfx.costs.schedule_plan import Plan", None),
        (
            "estfx/costs/flops.py",
            "def f():\n    from estfx.costs.schedule_plan import Plan",
            "No circles, in a folder neither",
        ),
        ("estfx/runtime/planted.py", "import estfx", "From inside, names come from doors"),
    ],
)
def test_an_import_that_goes_up_or_round_is_found(copy: Path, file: str, line: str, said: str | None) -> None:
    with (copy / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    done = run(*LINT, cwd=copy)
    assert (done.returncode != 0) == (said is not None), done.stdout
    if said is not None:
        assert f"{said} BROKEN" in " ".join(done.stdout.split()), done.stdout


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        (
            "estfx/runtime/warmup.py",
            "from estfx.programs.program import Variant",
            "Import from estfx.programs, which has",
        ),
        ("passes/find_mlp.py", "from estfx.graphs.fx_graphs import clone", "Import from estfx.graphs, which has"),
        ("estfx/report.py", "import estfx.tracing.exporting", "Import from estfx.tracing"),
        ("estfx/runtime/warmup.py", "from estfx.programs import Variant", None),
        ("estfx/tracing/capture.py", "from estfx.tracing.exporting.layer_graph import TracedLayer", None),
    ],
)
def test_what_lies_inside_of_a_folder_is_imported_by_its_door(
    copy: Path, file: str, line: str, said: str | None
) -> None:
    with (copy / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    done = run(".ci/doors.py", str(copy), cwd=copy)
    assert (done.returncode != 0) == (said is not None), done.stdout
    if said is not None:
        assert said in done.stdout


@pytest.mark.parametrize("folder", [*FOLDERS, "axes.rules", "tracing.exporting"])
def test_a_folder_says_what_goes_in_and_what_comes_out(folder: str) -> None:
    module = importlib.import_module(f"estfx.{folder}")
    assert module.__doc__
    if folder == "integrations":
        return  # a door each file
    if folder not in ("axes.rules", "passes"):
        assert "In go" in module.__doc__
        assert "out come" in module.__doc__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_no_file_is_long_and_no_folder_full() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "passes" not in path.parts] + [*(ROOT / "passes").glob("*.py")]
    assert [path for path in files if len(path.read_text().splitlines()) > 300] == []
    folders = {path.parent for path in files}
    assert [folder for folder in folders if len([*folder.glob("[!_]*.py")]) > 20] == []


def test_tests_mirror_the_folders() -> None:
    here = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert here - {"drawn_decoders", "golden", "mutants", "quality"} <= {*FOLDERS, "passes"}
    for path in Path(__file__).parent.glob("*/test_*.py"):
        assert path.parent.name in here


@pytest.mark.parametrize("package", ["estfx", "estfx.costs", "estfx.schedules", "estfx.training"])
def test_lazy_names_are_the_same_for_python_and_for_type_checkers(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.name: str(node.module) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert told == module._MODULES
    at_once = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(told) == set(module.__all__) - at_once
    assert set(dir(module)) >= set(told)
    # a module that is loaded takes the place of a name that is spelled as it is
    assert not [name for name in told if Path(str(module.__file__)).with_name(f"{name}.py").exists()]
    assert all(getattr(module, name) is not None for name in told)


def test_a_name_that_is_not_there_is_no_name() -> None:
    with pytest.raises(AttributeError, match="module 'estfx' has no attribute 'nonsense'"):
        estfx.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", MOVED)
def test_a_module_that_was_public_names_the_new_door(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"estfx\.{name} is gone. {MOVED[name]}"):
        importlib.import_module(f"estfx.{name}")
    with pytest.raises(AttributeError, match=rf"estfx\.{name} is gone: "):
        getattr(estfx, name)
    for word in MOVED[name].split("Import ")[-1].split(" from ")[0].replace(" and ", ", ").split(", "):
        if "from " in MOVED[name]:
            door = importlib.import_module(MOVED[name].split(" from ")[-1].rstrip("."))
            assert getattr(door, word) is not None


def test_a_method_that_was_public_names_the_new_door() -> None:
    with pytest.raises(ScheduleError, match=r"is now estfx\.schedule_for_saving"):
        estfx.Schedule.for_saving(object(), 0.25, 100)


LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"


@pytest.mark.sweep("code", days=2)
@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import estfx", ("torch", "transformers", "pydantic", "numpy", "rich")),
        ("import estfx.cli", ("torch", "transformers", "pydantic", "numpy")),
        ("import estfx; estfx.Schedule.est(15)", ("transformers",)),
        ("import estfx; estfx.transform", ("transformers",)),
    ],
)
def test_an_import_loads_no_more_than_it_needs(code: str, heavy: tuple[str, ...]) -> None:
    loaded = set(json.loads(run("-c", f"{code}\n{LOADED}", cwd=ROOT).stdout))
    assert loaded.isdisjoint(heavy)


@pytest.mark.sweep(day=0, days=2)
def test_an_import_is_light_beside_that_of_torch() -> None:
    """In processor seconds, and the least of several runs in turn: another process disturbs these least."""
    commands = {
        "torch": ("-c", "import torch"),
        "estfx": ("-c", "import torch, estfx"),
        "help": ("-m", "estfx", "--help"),
    }
    least = dict.fromkeys(commands, math.inf)
    for _ in range(8):
        for name, command in commands.items():
            before = seconds_of_children()
            assert run(*command, cwd=ROOT).returncode == 0
            least[name] = min(least[name], seconds_of_children() - before)
        if least["estfx"] <= 1.15 * least["torch"] and least["help"] <= 0.5 * least["torch"]:
            return
    raise AssertionError(least)


def seconds_of_children() -> float:
    """The processor seconds of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("changed", "touched"),
    [
        ("estfx/graphs/aliasing.py", {}),
        ("estfx/axes/algebra.py", {"tests/axes/test_algebra.py": 0}),
        ("passes/find_mlp.py", {"tests/passes/test_find_mlp.py": 0}),
        ("tests/axes/test_walk.py", {"tests/axes/test_walk.py": 0}),
        ("tests/brute_force.py", {"tests/axes/rules/test_cuts.py": 1}),
        ("estfx/schedules/stage.py", {"tests/schedules/test_stage.py": 0, "tests/test_equivalence.py": 2}),
        ("docs/how-to/fsdp2.md", {"tests/test_docs.py": 1}),
        ("examples/ddp.py", {"tests/test_examples.py": 1}),
        ("pyproject.toml", {"tests/test_house.py": 1}),
        ("benchmarks/results/none.json", {"tests/test_house.py": 1}),
    ],
)
def test_a_change_touches_the_tests_of_its_files(changed: str, touched: dict[str, int]) -> None:
    found = {str(path): near for path, near in touched_tests(ROOT, [Path(changed)]).items()}
    assert touched.items() <= found.items()
    if changed == "estfx/graphs/aliasing.py":  # it has no test of its own: all of its folder
        assert {path for path, near in found.items() if near == 1} == {
            str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "graphs").glob("test_*.py")
        }
