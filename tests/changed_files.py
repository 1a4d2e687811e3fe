"""Which tests a change touches, for `pytest --changed`: told from the names of files and from what they import."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable
from pathlib import Path

__all__ = ["changed_files", "touched_tests"]


def changed_files(root: Path, revision: str) -> list[Path]:
    """The files that differ from a revision, those that git does not know yet among them. Relative to the root.

    Raises ValueError with git's words if there is no such revision, or no git.
    """
    found: list[Path] = []
    for command in (
        ["git", "diff", "--name-only", revision, "--"],
        ["git", "ls-files", "--others", "--exclude-standard"],
    ):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        found += [Path(line) for line in done.stdout.splitlines()]
    return found


def touched_tests(root: Path, changed: Iterable[Path]) -> dict[Path, int]:
    """The test files that a change touches, relative to the root, with how near each is: 0, 1 or 2.

    0: the test itself has changed, or is named for what has. 1: it is in the folder of what has changed and has no test
    of its own, uses a helper that has, or looks at pages and examples that have. 2: it imports what has changed, and
    may be about something else.
    """
    tests = {path: _imports(root / path) for path in _test_files(root)}
    near: dict[Path, int] = {}

    def touch(path: Path, distance: int) -> None:
        near[path] = min(distance, near.get(path, distance))

    for file in changed:
        if file in tests:
            touch(file, 0)
        elif file.parts[0] == "tests" and file.suffix == ".py":
            for path, imported in tests.items():
                if file.stem in imported or (file.name == "conftest.py" and file.parent in path.parents):
                    touch(path, 1)
        elif file.parts[0] in ("estfx", "passes") and file.suffix in (".py", ".jinja"):
            named, folder = _mirrored(file)
            for path in tests:
                if path == named or (named not in tests and path.parent == folder):
                    touch(path, int(path != named))
            module = ".".join(_package_path(file).with_suffix("").parts).removesuffix(".__init__")
            for path, imported in tests.items():
                if module in imported:
                    touch(path, 2)
        elif file.suffix == ".md" or file.parts[0] == "docs" or file.name == "mkdocs.yml":
            touch(Path("tests/test_docs.py"), 1)
        elif file.parts[0] == "examples":
            touch(Path("tests/test_examples.py"), 1)
        elif file.parts[0] in ("benchmarks", ".ci") or file.name == "pyproject.toml":
            for path, imported in tests.items():
                if file.stem in imported or path.name == "test_house.py":
                    touch(path, 1)
    return {path: distance for path, distance in near.items() if path in tests}


def _test_files(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in (root / "tests").rglob("test_*.py"))


def _package_path(file: Path) -> Path:
    return Path("estfx") / file if file.parts[0] == "passes" else file


def _mirrored(file: Path) -> tuple[Path, Path]:
    """The test that is named for a file of the package, and the folder of its tests."""
    inside = _package_path(file).relative_to("estfx")
    folder = Path("tests") / inside.parent
    return folder / f"test_{inside.stem}.py", folder


def _imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
