"""Checks that from outside a folder of the package only its doors are imported: `python .ci/doors.py`.

A door is a name in the `__all__` of a folder's `__init__.py`. Every other module of a folder is banned, by ruff's
TID251, everywhere but in the folder itself. Tests are free: they test what lies inside.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("benchmarks", "docs", "examples")


def folders(package: Path) -> list[Path]:
    return sorted(each.parent for each in package.glob("*/__init__.py"))


def doors_of(folder: Path) -> tuple[set[str], dict[str, list[str]]]:
    """The names in `__all__`, and from which module of the folder each comes."""
    names: set[str] = set()
    origins: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names |= set(ast.literal_eval(node.value))
        if isinstance(node, ast.ImportFrom) and node.module:
            origins.setdefault(node.module, []).extend(alias.name for alias in node.names)
    return names, origins


def banned(package: Path, own: str | None) -> dict[str, dict[str, str]]:
    """What files of the folder `own` may not import, with the words of the message."""
    found = {}
    for folder in folders(package):
        door = f"{package.name}.{folder.name}"
        names, origins = doors_of(folder)
        for file in sorted(folder.rglob("*.py")):
            module = ".".join((package.name, *file.relative_to(package).with_suffix("").parts))
            inner = module.removesuffix(".__init__")
            inside = inner.removeprefix(f"{door}.")
            if folder.name == own or inner == door or inside in names or (folder.name, inside) in PUBLIC:
                continue
            own_doors = sorted(names.intersection(origins.get(inner, ())))
            what = f"which has {', '.join(own_doors)} of it" if own_doors else "which has no name of it: add one there"
            found[inner] = {"msg": f"it lies inside of {door}. Import from {door}, {what}."}
    return found


PUBLIC = {("integrations", "transformers"), ("integrations", "lightning")}  # names of other libraries are doors


def check(root: Path) -> int:
    package = root / "estfx"
    places: list[tuple[str | None, list[Path]]] = [(each.name, [each.resolve()]) for each in folders(package)]
    places.append((None, [*sorted(package.glob("*.py")), *(root / each for each in OUTSIDE if (root / each).is_dir())]))
    failed = 0
    for own, paths in places:
        config = f"lint.flake8-tidy-imports.banned-api = {_toml(banned(package, own))}"
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "TID251"]
        command += ["--output-format", "concise", "--config", config, *map(str, paths)]
        failed |= subprocess.run(command, cwd=root).returncode
    return failed


def _toml(table: dict[str, dict[str, str]]) -> str:
    rows = (f"{json.dumps(name)} = {{ msg = {json.dumps(entry['msg'])} }}" for name, entry in table.items())
    return f"{{ {', '.join(rows)} }}"


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
